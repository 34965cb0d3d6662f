"""What the chapter says and asks, beside what a run measures of it: rows of the report, which `pipeline.page` fills.

Each is in the chapter's words or near them, then the measures, whether they agree or not, and the command behind them.
{KEY} is a number as `dvc metrics show` has it, or the last of data/curves/: {curves.FILE.COLUMN}. What stands in <> is
said of each PRIOR by its NAME. PROBLEM is report.posterior, FEWEST and MOST are of crossover.measurements. A picture of
the report stands in [].
"""

STATEMENTS = [
    (
        "An image is generated from few latent variables, x ≈ G(z). So it must be near the range of G.",
        "PSNR in dB of the best G(z) for the true patch, and of the one found from y, PROBLEM: <NAME "
        "{PRIOR.range.representation.psnr_db} and {PRIOR.range.PROBLEM.psnr_db}>. [crossover]",
        "dvc repro evaluate",
    ),
    (
        "An autoencoder does not tell how to sample its codes. Exercise 2: why can a VAE be sampled more naturally?",
        "Share of real patches with a sample near: codes of N(0, I), autoencoder {sample.ae_raw.range.coverage}, "
        "VAE {sample.vae.range.coverage}; from a Gaussian fitted to its codes, autoencoder {sample.ae.range.coverage}; "
        "other real patches {sample.floor.coverage}. [samples]",
        "dvc repro sample",
    ),
    (
        "log p(x) is intractable. The ELBO lies below it.",
        "Nats per pixel, VAE with residual covariance: ELBO {vae.relaxed.likelihood.elbo}, log p(x) estimated as "
        "{vae.relaxed.likelihood.log_likelihood}, Monte Carlo error {vae.relaxed.likelihood.monte_carlo_error}.",
        "dvc repro evaluate@vae",
    ),
    (
        "Exercise 1: the role of the KL term. It draws q(z | x) to N(0, I), at worst until codes say nothing.",
        "KL in nats and coordinates in use: {train_vae.test_kl} and {train_vae.used_units} at σ = {train_vae.sigma}; "
        "{train_vae.chapter.test_kl} and {train_vae.chapter.used_units}, after a short training, at the chapter's σ = "
        "{train_vae.chapter.sigma}. [posterior_collapse]",
        "dvc repro train_vae",
    ),
    (
        "A VAE pays a price for its KL: reconstructions are more regularized than an autoencoder's.",
        "PSNR of G(E(x)) in dB: autoencoder {train_ae.test_psnr_db}, VAE {train_vae.test_psnr_db}.",
        "dvc repro train_ae train_vae",
    ),
    (
        "A decoder N(G(z), σ² I) can be too simple for textures.",
        "ELBO in nats per pixel: VAE {train_vae.test_elbo}, structured VAE, with Σ(z), {train_svae.test_elbo}.",
        "dvc repro train_vae train_svae",
    ),
    (
        "z = μ + σ ⊙ ε makes a random code a function of μ and σ.",
        "The chapter's first draw: {chapter.reparameterisation.draw_1.z1}, {chapter.reparameterisation.draw_1.z2}.",
        "dvc repro chapter",
    ),
    (
        "VAEs are often smooth, GANs are sharp.",
        "High frequencies of G(z) in dB over those of real patches, below 0 is smooth: VAE "
        "{sample.vae.range.detail_db}, GAN {sample.gan.range.detail_db}. [samples]",
        "dvc repro sample",
    ),
    (
        "A GAN is a game of two networks. Its training can oscillate.",
        "Mean of the chapter's 1-D GAN, on its way to 1.5: {chapter.gan_1d.step_050.fake_mean}, "
        "{chapter.gan_1d.step_100.fake_mean}, {chapter.gan_1d.step_200.fake_mean}. [curves]",
        "dvc repro chapter",
    ),
    (
        "Exercise 3: mode collapse. Many codes give very similar images.",
        "Coverage and spread at the end: default game {curves.gan_collapse.coverage} and {curves.gan_collapse.spread}, "
        "the chapter's minimax {curves.gan_chapter_collapse.coverage} and {curves.gan_chapter_collapse.spread}; a "
        "spread of 1 is that of real patches. [collapse]",
        "dvc repro sample",
    ),
    (
        "A sharp image is no calibrated model, and a GAN has no tractable likelihood.",
        "With a residual covariance each has one. Share of pixels within their 90 % interval, PROBLEM, and log p(x) in "
        "nats per pixel: <NAME {PRIOR.relaxed.PROBLEM.coverage_90} and {PRIOR.relaxed.likelihood.log_likelihood}>.",
        "dvc repro evaluate",
    ),
    (
        "λ weighs ‖z‖² against ‖K G(z) − y‖².",
        "PSNR of each range against λ. [latent_weight]",
        "dvc repro evaluate",
    ),
    (
        "A trained network gives a single answer, where several images may fit y.",
        "PSNR in dB, PROBLEM: the network {discriminative.none.PROBLEM.psnr_db}; means of the images that fit y: "
        "<NAME {PRIOR.mean.PROBLEM.psnr_db}>. [posterior_ae]",
        "dvc repro train_discriminative evaluate",
    ),
    (
        "Exercise 4: useful as priors? To search for k numbers, not n, is a powerful regularizer.",
        "PSNR in dB with FEWEST and MOST measurements: <NAME {PRIOR.range.m_FEWEST.psnr_db} and "
        "{PRIOR.range.m_MOST.psnr_db}>; Lasso {lasso_dct.none.m_FEWEST.psnr_db} and {lasso_dct.none.m_MOST.psnr_db}. "
        "[crossover]",
        "dvc repro evaluate baselines",
    ),
]
