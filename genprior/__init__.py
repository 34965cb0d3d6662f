"""Learned priors for imaging inverse problems: autoencoder, VAE and GAN on one footing.

Notation, here and in every module:

    x   image or patch with n pixels in [0, 1]; tensors (batch, 1, height, width)
    z   latent code, k numbers, z ~ N(0, I) under every prior
    G   decoder or generator, R^k -> R^n;  E  encoder;  D  discriminator
    U   orthonormal two-dimensional DCT, its basis images in the columns
    K   forward operator;  y = K x + e,  e ~ N(0, sigma^2 I)  measurement
    λ   weight of the latent prior in  argmin_z |K G(z) - y|^2 + λ |z|^2;  λ = sigma^2 is Bayes'

Operators speak `A(x)` and `A_adjoint(y)`, the interface of the deepinv library.
"""
