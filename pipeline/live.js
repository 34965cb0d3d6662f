// What genprior computes, of one code at a time, in a page: decoders, energies, reconstructions, posteriors.
// Images and codes are flat arrays, matrices {rows, cols, data} row by row. tests/test_live.py holds them to torch's.
"use strict";
const live = (() => {
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const bell = (x) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
  // The normal distribution function, to 1e-7. Abramowitz & Stegun, 26.2.17
  const area = (x) => {
    const t = 1 / (1 + 0.2316419 * Math.abs(x));
    const tail =
      bell(x) * t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
    return x > 0 ? 1 - tail : tail;
  };
  const ACTIVATIONS = {
    // value and slope
    relu: [(x) => Math.max(x, 0), (x) => Number(x > 0)],
    leaky_relu: [(x) => (x > 0 ? x : 0.01 * x), (x) => (x > 0 ? 1 : 0.01)],
    elu: [(x) => (x > 0 ? x : Math.expm1(x)), (x) => (x > 0 ? 1 : Math.exp(x))],
    silu: [(x) => x * sigmoid(x), (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x)))],
    gelu: [(x) => x * area(x), (x) => area(x) + x * bell(x)],
    tanh: [Math.tanh, (x) => 1 - Math.tanh(x) ** 2],
  };

  // Uniform and normal random numbers that a seed repeats (mulberry32; Box & Muller 1958).
  function random(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
    const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    return { uniform, normal, normals: (count) => Float64Array.from({ length: count }, normal) };
  }

  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const added = (a, b, factor = 1) => a.map((value, i) => value + factor * b[i]);

  // The sum of a[from + k] b[at + k] over k < n, four sums side by side
  function inner(a, from, b, at, n) {
    let s0 = 0,
      s1 = 0,
      s2 = 0,
      s3 = 0,
      k = 0;
    for (; k + 3 < n; k += 4) {
      s0 += a[from + k] * b[at + k];
      s1 += a[from + k + 1] * b[at + k + 1];
      s2 += a[from + k + 2] * b[at + k + 2];
      s3 += a[from + k + 3] * b[at + k + 3];
    }
    for (; k < n; k++) s0 += a[from + k] * b[at + k];
    return s0 + s1 + s2 + s3;
  }

  // W x, or with a bias W x + b
  function product({ rows, cols, data }, x, bias) {
    const found = new Float64Array(rows);
    for (let i = 0; i < rows; i++) found[i] = inner(data, i * cols, x, 0, cols) + (bias ? bias[i] : 0);
    return found;
  }

  // Wᵀ y
  function transposed({ rows, cols, data }, y) {
    const found = new Float64Array(cols);
    for (let i = 0, at = 0; i < rows; i++) {
      for (let j = 0; j < cols; j++) found[j] += data[at++] * y[i];
    }
    return found;
  }

  // Layers {weight, bias} with the activation between them; `before` is what the activations saw.
  function forward(layers, x, [value]) {
    const inputs = [],
      before = [];
    layers.forEach(({ weight, bias }, i) => {
      inputs.push(x);
      x = product(weight, x, bias);
      if (i < layers.length - 1) {
        before.push(x);
        x = x.map(value);
      }
    });
    return { out: x, inputs, before };
  }

  // The gradient at the input for one at the output; `weigh` is told that of each layer's output.
  function backward(layers, { before }, gradient, [, slope], weigh = () => {}) {
    for (let i = layers.length - 1; i >= 0; i--) {
      weigh(i, gradient);
      gradient = transposed(layers[i].weight, gradient);
      if (i > 0) gradient = gradient.map((value, j) => value * slope(before[i - 1][j]));
    }
    return gradient;
  }

  // A prior as pipeline/live.py packs it: float32 numbers, then whole numbers of a byte, one step size for each row.
  function unpack(header, buffer) {
    const floats = new Float32Array(buffer, 0, header.floats),
      whole = new Int8Array(buffer, 4 * header.floats);
    const tensors = {};
    let at = 0,
      from = 0;
    for (const [name, rows, cols] of header.tensors) {
      const steps = floats.subarray(at, (at += rows));
      if (cols === 0) tensors[name] = steps;
      else {
        const data = new Float32Array(rows * cols);
        for (let i = 0; i < data.length; i++) data[i] = steps[Math.floor(i / cols)] * whole[from + i];
        tensors[name] = { rows, cols, data };
        from += rows * cols;
      }
    }
    const layers = (prefix) => {
      const names = Object.keys(tensors).filter((name) => name.startsWith(prefix) && name.endsWith("weight"));
      return names.map((name) => ({ weight: tensors[name], bias: tensors[name.replace("weight", "bias")] }));
    };
    const [height, width] = header.shape;
    const cosine = (side, i, j) => Math.sqrt((j ? 2 : 1) / side) * Math.cos((Math.PI * (2 * i + 1) * j) / (2 * side));
    const axes = (entry) =>
      [height, width].map((side) =>
        Float64Array.from({ length: side * side }, (_, i) => entry(side, Math.floor(i / side), i % side)),
      );
    return {
      ...header,
      height,
      width,
      n: height * width,
      activation: ACTIVATIONS[header.activation],
      tensors,
      dct: axes(cosine),
      back: axes((side, i, j) => cosine(side, j, i)),
      squared: axes((...at) => cosine(...at) ** 2),
      body: [...layers("decoder.body."), ...layers("decoder.mean.")],
      logVariance: layers("decoder.log_variance."),
      logScale: layers("decoder.log_scale."),
      flow: [...Array(header.flow).keys()].map((i) => layers(`flow.networks.${i}.`)),
    };
  }

  // A c Bᵀ of a matrix c of the patch's shape, for the matrices [A, B] of its axes
  function separable({ height, width }, [A, B], c) {
    const rows = new Float64Array(height * width),
      found = new Float64Array(height * width);
    for (let i = 0; i < height; i++) {
      for (let k = 0; k < height; k++) {
        const factor = A[i * height + k];
        for (let j = 0; j < width; j++) rows[i * width + j] += factor * c[k * width + j];
      }
    }
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        let sum = 0;
        for (let k = 0; k < width; k++) sum += B[j * width + k] * rows[i * width + k];
        found[i * width + j] = sum;
      }
    }
    return found;
  }

  // G(t) of a code t of G's own: an image
  const decode = (prior, t) => decoded(prior, t).image;

  function decoded(prior, t) {
    const { tensors, body, activation } = prior;
    const code = product(tensors.code_factor, t, tensors.code_mean);
    const kept = forward(body, code, activation),
      linear = product(tensors["decoder.linear.weight"], code);
    const scale = tensors["decoder.coefficients.scale"],
      mean = tensors["decoder.coefficients.mean"];
    const image = separable(
      prior,
      prior.dct,
      kept.out.map((value, i) => mean[i] + scale[i] * (value + linear[i])),
    );
    return { image, code, kept };
  }

  // Jᵀ g of G at what `decoded` found
  function pulled(prior, { kept }, g) {
    const { tensors, body, activation } = prior,
      scale = tensors["decoder.coefficients.scale"];
    const inner = separable(prior, prior.back, g).map((value, i) => scale[i] * value);
    const code = added(backward(body, kept, inner, activation), transposed(tensors["decoder.linear.weight"], inner));
    return transposed(tensors.code_factor, code);
  }

  // T(z): the code of G at which images lie, of a standard normal z. Dinh et al. 2017, section 3
  function transport(prior, z) {
    const k = z.length,
      digits = Math.max(1, Math.min(3, Math.ceil(Math.log2(k))));
    prior.flow.forEach((layers, layer) => {
      const seen = z.map((_, i) => Number(((i >> (Math.floor(layer / 2) % digits)) & 1) === layer % 2));
      const { out } = forward(
        layers,
        z.map((value, i) => value * seen[i]),
        ACTIVATIONS.silu,
      );
      z = z.map((value, i) => (seen[i] ? value : value * Math.exp(2 * Math.tanh(out[k + i] / 2)) + out[i]));
    });
    return z;
  }

  // N(G(t), D U diag(v) Uᵀ D) of a code t of G's own: the image G(t), √v and d, which is 1 where there are no scales
  function law(prior, t) {
    const { tensors, n, logVariance, logScale, activation } = prior,
      { image, code } = decoded(prior, t);
    const scale = tensors["decoder.coefficients.scale"];
    const root = forward(logVariance, code, activation).out.map(
      (raw, i) => scale[i] * Math.exp(0.5 * (-7 + 9 * sigmoid(raw))),
    );
    let d = new Float64Array(n).fill(1);
    if (logScale.length) {
      d = transposed(
        tensors["decoder.fields"],
        forward(logScale, code, activation).out.map((raw) => Math.exp(3 * Math.tanh(raw / 3))),
      );
    }
    return { image, root, d };
  }

  // D U (√v ⊙ c), and its transpose
  const spread = (prior, { root, d }, c) =>
    separable(
      prior,
      prior.dct,
      c.map((value, i) => root[i] * value),
    ).map((value, i) => d[i] * value);
  const gathered = (prior, { root, d }, x) =>
    separable(
      prior,
      prior.back,
      x.map((value, i) => d[i] * value),
    ).map((value, i) => root[i] * value);

  // The standard deviation of each of its pixels
  const deviation = (prior, { root, d }) =>
    separable(
      prior,
      prior.squared,
      root.map((value) => value * value),
    ).map((value, i) => d[i] * Math.sqrt(value));

  // S = L Lᵀ, in place of a symmetric S's lower triangle
  function cholesky({ rows, data }) {
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j <= i; j++) {
        const sum = data[i * rows + j] - inner(data, i * rows, data, j * rows, j);
        data[i * rows + j] = i === j ? Math.sqrt(sum) : sum / data[j * rows + j];
      }
    }
  }

  // L⁻¹ b and L⁻ᵀ b
  function solved({ rows, data }, b, back = false) {
    const x = Float64Array.from(b);
    for (let step = 0; step < rows; step++) {
      const i = back ? rows - 1 - step : step;
      for (let k = back ? i + 1 : 0; k < (back ? rows : i); k++)
        x[i] -= (back ? data[k * rows + i] : data[i * rows + k]) * x[k];
      x[i] /= data[i * rows + i];
    }
    return x;
  }

  // Half of (y - K G)ᵀ S⁻¹ (y - K G) + log det 2π S + |z|², S = σ² I + K Σ(z) Kᵀ, at z ~ N(0, I). problem: {K, y, sigma}
  function posed(prior, { K, y, sigma }, z) {
    const at = law(prior, transport(prior, z)),
      m = K.rows,
      n = prior.n;
    const B = { rows: m, cols: n, data: new Float64Array(m * n) }; // K D U √v
    for (let i = 0; i < m; i++) B.data.set(gathered(prior, at, K.data.subarray(i * n, (i + 1) * n)), i * n);
    const L = { rows: m, cols: m, data: new Float64Array(m * m) };
    for (let i = 0; i < m; i++) {
      for (let j = 0; j <= i; j++) L.data[i * m + j] = inner(B.data, i * n, B.data, j * n, n);
      L.data[i * m + i] += sigma * sigma;
    }
    cholesky(L);
    const white = solved(L, added(y, product(K, at.image), -1));
    let half = 0;
    for (let i = 0; i < m; i++) half += Math.log(L.data[i * m + i]);
    const energy = 0.5 * dot(white, white) + half + 0.5 * m * Math.log(2 * Math.PI) + 0.5 * dot(z, z);
    return { z, at, B, L, white, energy };
  }

  // E[x | y, z] at what `posed` found
  const expected = (prior, { at, B, L, white }) =>
    added(at.image, spread(prior, at, transposed(B, solved(L, white, true))));

  // That and the variance of each pixel given y and z
  function given(prior, posed) {
    const { at, B, L } = posed,
      mean = expected(prior, posed);
    const variance = deviation(prior, at).map((value) => value * value),
      m = B.rows,
      n = B.cols;
    const W = Float64Array.from(B.data); // L⁻¹ B
    for (let i = 0; i < m; i++) {
      const own = W.subarray(i * n, (i + 1) * n);
      for (let k = 0; k < i; k++) {
        const factor = L.data[i * m + k];
        for (let j = 0, from = k * n; j < n; j++) own[j] -= factor * W[from + j];
      }
      for (let j = 0; j < n; j++) own[j] /= L.data[i * m + i];
      spread(prior, at, own).forEach((value, j) => (variance[j] -= value * value));
    }
    return { mean, variance: variance.map((value) => Math.max(value, 0)) };
  }

  // The chapter's reconstruction, argmin |K G(z) - y|² + λ |z|², one gradient step after another
  function* descent(prior, { K, y }, weight, start, steps = 300) {
    const at = (z) => {
      const found = decoded(prior, z),
        residual = added(product(K, found.image), y, -1);
      return { z, found, residual, value: dot(residual, residual) + weight * dot(z, z) };
    };
    let now = at(start),
      length = 0.01;
    for (let step = 0; step < steps; step++) {
      yield { z: now.z, image: now.found.image, value: now.value, step };
      const gradient = added(pulled(prior, now.found, transposed(K, now.residual)), now.z, weight).map(
        (value) => 2 * value,
      );
      const square = dot(gradient, gradient);
      let next = at(added(now.z, gradient, -length));
      while (!(next.value <= now.value - 0.5 * length * square) && length > 1e-9)
        next = at(added(now.z, gradient, -(length /= 2)));
      if (!(next.value < now.value * (1 - 1e-6))) return;
      now = next;
      length *= 2;
    }
  }

  // The posterior of z by elliptical slice sampling (Murray et al. 2010), and with it E[x | y] and the standard deviation
  // of x | y, better with every step: what E[x | y, z] and its variance are on average. `starts`: codes of which the
  // likeliest begins. Between what takes long it yields null, for a page to breathe.
  function* posterior(prior, problem, draw, starts, burn = 15) {
    let now = null;
    for (const z of [new Float64Array(prior.k), ...starts]) {
      const next = posed(prior, problem, z);
      if (now === null || next.energy < now.energy) now = next;
      yield { mean: expected(prior, now), std: null, z: now.z, count: 0 };
    }
    const without = ({ energy, z }) => energy - 0.5 * dot(z, z);
    const found = {
      count: 0,
      mean: new Float64Array(prior.n),
      square: new Float64Array(prior.n),
      variance: new Float64Array(prior.n),
    };
    for (let step = 0; ; step++) {
      const nu = draw.normals(prior.k),
        level = without(now) - Math.log(1 - draw.uniform());
      let angle = 2 * Math.PI * draw.uniform(),
        low = angle - 2 * Math.PI,
        high = angle,
        next = null;
      for (;;) {
        const cosine = Math.cos(angle),
          sine = Math.sin(angle);
        next = posed(
          prior,
          problem,
          now.z.map((value, i) => value * cosine + nu[i] * sine),
        );
        if (without(next) <= level) break;
        if (angle < 0) low = angle;
        else high = angle;
        angle = low + (high - low) * draw.uniform();
        yield null;
      }
      yield null;
      now = next;
      const own = given(prior, now);
      if (step >= burn) {
        found.count += 1;
        own.mean.forEach((value, i) => {
          found.mean[i] += value;
          found.square[i] += value * value;
          found.variance[i] += own.variance[i];
        });
      }
      yield {
        ...(found.count ? averaged(found) : { mean: own.mean, std: own.variance.map(Math.sqrt) }),
        z: now.z,
        count: found.count,
      };
    }
  }

  function averaged({ count, mean, square, variance }) {
    const average = mean.map((value) => value / count);
    return {
      mean: average,
      std: variance.map((value, i) => Math.sqrt(Math.max(value / count + square[i] / count - average[i] ** 2, 0))),
    };
  }

  // The GAN of one dimension that the chapter plays: two networks 1 - 16 - 1 and Adam, lr 0.01, target N(1.5, 0.2²)
  function game(draw, saturating = false, batch = 64) {
    const network = () =>
      [
        [16, 1],
        [1, 16],
      ].map(([rows, cols]) => {
        const bound = 1 / Math.sqrt(cols),
          uniform = (count) => Float64Array.from({ length: count }, () => bound * (2 * draw.uniform() - 1));
        return { weight: { rows, cols, data: uniform(rows * cols) }, bias: uniform(rows) };
      });
    const G = network(),
      D = network(),
      of = (net, x) => forward(net, [x], ACTIVATIONS.relu);
    const moments = new Map();
    let time = 0;

    // Add the gradients of the sum over x of f(net(x)), whose slopes are given, and return those at the inputs
    const gradients = (net, kept, slopes, total) =>
      kept.map(
        (one, i) =>
          backward(net, one, [slopes[i]], ACTIVATIONS.relu, (layer, gradient) => {
            const { cols } = net[layer].weight;
            gradient.forEach((value, row) => {
              total[layer].bias[row] += value;
              for (let j = 0; j < cols; j++) total[layer].weight[row * cols + j] += value * one.inputs[layer][j];
            });
          })[0],
      );
    const zero = (net) =>
      net.map(({ weight, bias }) => ({
        weight: new Float64Array(weight.data.length),
        bias: new Float64Array(bias.length),
      }));
    const adam = (values, gradient) => {
      if (!moments.has(values)) moments.set(values, [new Float64Array(values.length), new Float64Array(values.length)]);
      const [first, second] = moments.get(values);
      gradient.forEach((g, i) => {
        first[i] = 0.9 * first[i] + 0.1 * g;
        second[i] = 0.999 * second[i] + 0.001 * g * g;
        values[i] -= (0.01 * first[i]) / (1 - 0.9 ** time) / (Math.sqrt(second[i] / (1 - 0.999 ** time)) + 1e-8);
      });
    };
    const move = (net, total) =>
      net.forEach(({ weight, bias }, i) => {
        adam(weight.data, total[i].weight);
        adam(bias, total[i].bias);
      });

    // Losses of a batch and their gradients in the networks' weights, from real samples and codes
    function losses(real, codes, ofGenerator) {
      const made = Array.from(codes, (z) => of(G, z)),
        total = zero(ofGenerator ? G : D),
        share = 1 / codes.length;
      const fake = made.map(({ out }) => of(D, out[0]));
      if (ofGenerator) {
        const loss = fake.map(({ out: [a] }) => (saturating ? -softplus(a) : softplus(-a)));
        const slopes = fake.map(({ out: [a] }) => -share * (saturating ? sigmoid(a) : sigmoid(-a)));
        gradients(G, made, gradients(D, fake, slopes, zero(D)), total);
        return { loss: share * loss.reduce((a, b) => a + b), total };
      }
      const seen = Array.from(real, (x) => of(D, x));
      gradients(
        D,
        seen,
        seen.map(({ out: [a] }) => -share * sigmoid(-a)),
        total,
      );
      gradients(
        D,
        fake,
        fake.map(({ out: [a] }) => share * sigmoid(a)),
        total,
      );
      const loss =
        seen.reduce((sum, { out: [a] }) => sum + softplus(-a), 0) +
        fake.reduce((sum, { out: [a] }) => sum + softplus(a), 0);
      return { loss: share * loss, total };
    }

    function step() {
      time += 1;
      const judged = losses(
        draw.normals(batch).map((e) => 1.5 + 0.2 * e),
        draw.normals(batch),
        false,
      );
      move(D, judged.total);
      const made = losses(null, draw.normals(batch), true);
      move(G, made.total);
      return { d: judged.loss, g: made.loss, step: time };
    }
    return { G, D, step, losses, generate: (z) => of(G, z).out[0], judge: (x) => sigmoid(of(D, x).out[0]) };
  }

  // Of x = g(z) + N(0, s²), z ~ N(0, 1), seen at x: the ELBO of q = N(μ, σ²), its terms, log p(x) and the posterior, by
  // sums over a grid of z
  function bound(mu, sigma, x, s, g, reach = 5, points = 2001) {
    const z = Float64Array.from({ length: points }, (_, i) => reach * ((2 * i) / (points - 1) - 1)),
      width = z[1] - z[0];
    const likelihood = z.map((value) => Math.log(bell((x - g(value)) / s) / s));
    const joint = z.map((value, i) => Math.exp(likelihood[i]) * bell(value));
    const evidence = joint.reduce((a, b) => a + b) * width;
    const q = z.map((value) => bell((value - mu) / sigma) / sigma),
      mass = q.reduce((a, b) => a + b) * width;
    const reconstruction = (-dot(q, likelihood) * width) / mass;
    const kl = 0.5 * (mu * mu + sigma * sigma - 1) - Math.log(sigma);
    return {
      z,
      q,
      posterior: joint.map((value) => value / evidence),
      reconstruction,
      kl,
      elbo: -reconstruction - kl,
      evidence: Math.log(evidence),
    };
  }

  return {
    unpack,
    random,
    decode,
    law,
    transport,
    spread,
    deviation,
    posed,
    given,
    descent,
    posterior,
    decoded,
    pulled,
    game,
    bound,
    product,
    transposed,
    added,
  };
})();
if (typeof module !== "undefined") module.exports = live;
