"""Learned priors for imaging inverse problems: autoencoder, VAE and GAN on one footing.

Notation, here and in every module:

    x   image or patch with n pixels in [0, 1]; tensors (batch, 1, height, width)
    z   latent code, k numbers, z ~ N(0, I) under every prior
    G   decoder or generator, R^k -> R^n;  E  encoder;  D  discriminator
    T   flow on the code, in front of G wherever the residual model speaks;  v  variances of what G leaves out
    U   orthonormal two-dimensional DCT, its basis images in the columns
    K   forward operator;  y = K x + e,  e ~ N(0, sigma^2 I)  measurement
    λ   weight of the latent prior in  argmin_z |K G(z) - y|^2 + λ |z|^2;  λ = sigma^2 is Bayes'

Operators speak `A(x)` and `A_adjoint(y)`, the interface of the deepinv library.

Names for use from outside:

    genprior.networks      Prior, load_network, save_network
    genprior.operators  Identity, Inpainting, GaussianBlur, Downsampling, Dense, gaussian_sensing, motion_blur
    genprior.operators  fourier_samples, tomography, PhaselessFourier, Saturation, as_matrix, pose, Measured
    genprior.energies   relaxed_energy, RangeEnergy, RelaxedEnergy, Energy
    genprior.inversion  screen, search, adam, lbfgs, Modes, Inversion
    genprior.posterior  dominant, sample_posterior, laplace_mixture, posterior_mean, Posterior, annealed_smc
    genprior.classical  minimum_norm, tikhonov, lasso, total_variation, linear_prior, fit_gaussian_prior, GaussianPrior
    genprior.quality    psnr_db, reconstruction_measures, interval_coverage, prdc, squared_mmd, detail_db
    genprior.images     read_photograph, resize, cut_patches, dct_basis
    genprior.params     load_params, InputError

A trained prior, its samples, one's own operator and data, the best image of each, and posterior samples:

    >>> import torch
    >>> from genprior.energies import relaxed_energy
    >>> from genprior.inversion import screen, search
    >>> from genprior.posterior import dominant, sample_posterior
    >>> from genprior.networks import load_network
    >>> class EveryOtherRow:  # K; one that is not linear has no A_adjoint, and torch differentiates its A
    ...     def A(self, x): return x[:, :, ::2]
    ...     def A_adjoint(self, y): return torch.stack([y, 0 * y], 3).flatten(2, 3)
    >>> prior, draw = load_network("data/models/vae.safetensors"), torch.Generator().manual_seed(0)
    >>> x = prior.sample(4, draw, residual=True)
    >>> y = EveryOtherRow().A(x) + 0.01 * torch.randn(4, 1, 8, 16, generator=draw)
    >>> energy = relaxed_energy(prior, EveryOtherRow(), y, sigma=0.01)
    >>> starts = screen(energy, torch.randn(2000, prior.latent_size, generator=draw), 4)  # of 2000 draws, the best
    >>> modes = search(energy, starts, iterations=30, audition=30)  # all to the end
    >>> dominant(energy, modes).x.shape  # at the mode that holds most of the posterior
    torch.Size([4, 1, 16, 16])
    >>> posterior = sample_posterior(energy, modes, samples=200, generator=draw)
    >>> posterior.images(lambda z, rows: energy.draw(z, rows, draw)).shape
    torch.Size([4, 200, 16, 16])
"""
