// The page's widgets: from controls to live.js and back to canvases. Ids are those of live.html.j2.
"use strict";
(async () => {
  const $ = (id) => document.getElementById(id),
    clamp = (value) => Math.min(Math.max(value, 0), 1);
  const given = JSON.parse($("live-data").textContent),
    patches = given.patches.map((grey) => Float64Array.from(grey, (value) => value / 255));
  const inflated = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  };
  const priors = {};
  for (const [name, packed] of Object.entries(given.priors))
    priors[name] = live.unpack(packed, await inflated(packed.content));
  const { n, height, width, k } = Object.values(priors)[0];
  for (const id of ["encoded", "patch"]) $(id).max = patches.length;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const signed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
  const normals = (seed, count) => live.random(seed).normals(count);

  // An image as grey pixels; where `hidden`, in the page's accent
  function show(id, image, hidden) {
    const canvas = $(id),
      context = canvas.getContext("2d");
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const pixels = context.createImageData(width, height);
    image.forEach((value, i) =>
      pixels.data.set(hidden && hidden[i] ? [180, 83, 42, 255] : [...Array(3).fill(255 * clamp(value)), 255], 4 * i),
    );
    context.putImageData(pixels, 0, 0);
  }

  // A slider or a list, its text, and what to do when it moves
  function control(id, text, moved) {
    const input = $(id),
      output = $(`${id}-text`);
    const write = () => {
      if (!output) return;
      output.value = text(Number(input.value));
      input.setAttribute("aria-valuetext", output.value);
    };
    input.addEventListener("input", () => {
      write();
      moved(input.value);
    });
    write();
    return {
      get value() {
        return input.tagName === "SELECT" ? input.value : Number(input.value);
      },
      set(value) {
        input.value = value;
        write();
      },
      say(words) {
        output.value = words;
        input.setAttribute("aria-valuetext", words);
      },
    };
  }
  const press = (id, pressed) => $(id).addEventListener("click", pressed);

  // Work that is cut into the page's frames, a generator's steps, while it is in view: the newest alone goes on
  function worker(told, inView) {
    let current = null;
    return (steps) => {
      const own = (current = steps);
      const frame = () => {
        if (own !== current) return;
        if (!inView()) {
          requestAnimationFrame(frame);
          return;
        }
        const begin = performance.now();
        let last = null;
        do {
          const { value, done } = own.next();
          if (done) {
            if (last) told(last);
            return;
          }
          last = value ?? last;
        } while (performance.now() - begin < 6);
        if (last) told(last);
        requestAnimationFrame(frame);
      };
      if (steps) frame();
    };
  }

  function codes() {
    const names = Object.keys(priors),
      z = Object.fromEntries(names.map((name) => [name, { own: new Float64Array(k), standard: new Float64Array(k) }]));
    const noise = normals(1, n),
      REACH = 4;
    let draws = 1,
      waiting = false;

    function plane(name) {
      const canvas = $(`plane-${name}`),
        context = canvas.getContext("2d"),
        { order, codes: dots } = priors[name];
      canvas.width = canvas.height = 160;
      const place = (value) => Math.min(Math.max(80 + (80 / REACH) * value, 3), 157);
      const dot = (code, size, style) => {
        context.fillStyle = style;
        context.beginPath();
        context.arc(place(code[order[0]]), place(-code[order[1]]), size, 0, 7);
        context.fill();
      };
      context.clearRect(0, 0, 160, 160);
      for (const code of dots) dot(code, 2, colour("--soft"));
      dot(z[name].own, 5, colour("--accent"));
    }

    function update() {
      waiting = false;
      for (const [name, prior] of Object.entries(priors)) {
        const { own, standard } = z[name],
          at = live.law(prior, live.transport(prior, standard));
        show(`image-${name}`, live.decode(prior, own));
        show(`drawn-${name}`, live.added(at.image, live.spread(prior, at, noise)));
        show(
          `std-${name}`,
          live.deviation(prior, at).map((value) => 3 * value),
        );
        plane(name);
      }
    }
    const later = () => {
      if (!waiting) requestAnimationFrame(update);
      waiting = true;
    };

    const sliders = Array.from({ length: k }, (_, i) =>
      control(
        `z-${i}`,
        (value) => signed(value),
        (value) => set(i, Number(value)),
      ),
    );
    // The i-th number by what it moves: of each prior another one
    function set(i, value) {
      for (const name of names) z[name].own[priors[name].order[i]] = z[name].standard[priors[name].order[i]] = value;
      later();
    }
    function all(values) {
      $("encoded-patch").getContext("2d").clearRect(0, 0, width, height);
      values.forEach((value, i) => {
        set(i, value);
        sliders[i].set(value);
      });
    }
    control(
      "encoded",
      (value) => String(value),
      (value) => {
        for (const name of names) {
          z[name].own.set(priors[name].codes[value - 1]);
          z[name].standard.set(priors[name].latents[value - 1]);
        }
        show("encoded-patch", patches[value - 1]);
        for (const slider of sliders) slider.say("each its own");
        later();
      },
    );
    press("draw", () => all(normals((draws += 1), k)));
    press("zero", () => all(new Float64Array(k)));
    for (const name of names) {
      const drag = (event) => {
        if (!event.buttons) return;
        const box = event.target.getBoundingClientRect();
        const at = [(event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height];
        at.map((share) => REACH * (2 * clamp(share) - 1)).forEach((value, i) => {
          set(i, value);
          sliders[i].set(value);
        });
        event.preventDefault();
      };
      for (const kind of ["pointerdown", "pointermove"]) $(`plane-${name}`).addEventListener(kind, drag);
    }
    $("try-codes").hidden = false;
    $("encoded").dispatchEvent(new Event("input"));
  }

  // Painting by pointer, or by arrow keys and the space bar, in a pixel's frame; `paint` gets a pixel, whether a stroke
  // begins, and gives the pixel's state in words, `cursor` is where the keys are
  function paintable(id, paint, redraw) {
    const canvas = $(id);
    const inside = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
    let at = [Math.floor(width / 2), Math.floor(height / 2)];
    const apply = (begins) => {
      const state = paint(at[1] * width + at[0], begins);
      canvas.setAttribute("aria-label", `${canvas.dataset.label}: row ${at[1] + 1}, column ${at[0] + 1}, ${state}`);
    };
    const to = (event, begins) => {
      const box = canvas.getBoundingClientRect(),
        from = at;
      const goal = [
        inside(((event.clientX - box.left) / box.width) * width, width),
        inside(((event.clientY - box.top) / box.height) * height, height),
      ];
      const steps = begins ? 1 : Math.max(Math.abs(goal[0] - from[0]), Math.abs(goal[1] - from[1]), 1);
      for (let i = 1; i <= steps; i++) {
        at = goal.map((value, j) => (begins ? value : Math.round(from[j] + ((value - from[j]) * i) / steps)));
        apply(begins);
      }
      event.preventDefault();
    };
    canvas.addEventListener("pointerdown", (event) => to(event, true));
    canvas.addEventListener("pointermove", (event) => event.buttons && to(event, false));
    canvas.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const [dx, dy] = moves[event.key] ?? [0, 0];
      if (!moves[event.key] && event.key !== " ") return;
      at = [inside(at[0] + dx, width), inside(at[1] + dy, height)];
      apply(event.key === " " ? true : null);
      redraw();
      event.preventDefault();
    });
    for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, redraw);
    canvas.dataset.label = canvas.getAttribute("aria-label");
    return () => {
      if (!canvas.matches(":focus-visible")) return;
      const context = canvas.getContext("2d");
      context.fillStyle = colour("--accent");
      context.fillRect(...at, 1, 1);
    };
  }

  const PAINT = "Paint on x: by mouse or finger, or with arrow keys and the space bar.";
  const HINTS = {
    hole: "Paint on x with the grey, or on what is seen to hide and show pixels: by mouse, finger, or arrow keys and space bar.",
    noise: PAINT,
    few: `Each number is a random sum of all pixels; put back by Kᵀ, they look like noise. ${PAINT}`,
  };
  const STEPS = 300;
  const CORNERS = [
    [0, 0],
    [1, 0],
    [0, 1],
    [1, 1],
  ];

  function inverse() {
    let x = null,
      back = null,
      hide = true,
      hidden = new Uint8Array(n),
      seed = 1,
      waiting = false,
      visible = false;
    const ask = () => {
      if (waiting) return;
      waiting = true;
      sampling(null);
      descending(null);
      requestAnimationFrame(measure);
    };
    const psnr = (image) =>
      `${(-10 * Math.log10(image.reduce((sum, value, i) => sum + (value - x[i]) ** 2, 1e-9) / n)).toFixed(1)} dB`;
    const prior = control("prior", String, ask),
      problem = control("problem", String, ask);
    const sigma = control("sigma", (value) => (10 ** value).toPrecision(2), ask),
      count = control("count", String, ask);
    const weight = control("lambda", (value) => `${Number((10 ** value).toPrecision(2))} σ²`, ask),
      grey = control(
        "grey",
        (value) => value.toFixed(2),
        () => {},
      );
    const patch = control("patch", String, (value) => {
      x = Float64Array.from(patches[value - 1]);
      ask();
    });

    const descending = worker(
      ({ image, value, step }) => {
        show("range", image);
        $("range-text").value = `${psnr(image)}, step ${step} of at most ${STEPS}`;
      },
      () => visible,
    );
    const sampling = worker(
      ({ mean, std, count: samples }) => {
        show("mean", mean);
        if (std)
          show(
            "deviation",
            std.map((value) => 5 * value),
          );
        $("mean-text").value = `${psnr(mean)}, ${samples ? `${samples} samples` : "a first code"}`;
      },
      () => visible,
    );

    // K as a matrix: the identity, its rows of pixels that are seen, or rows of N(0, 1 / n)
    function matrix() {
      const draw = live.random(5),
        few = problem.value === "few";
      const pixels = Array.from({ length: n }, (_, i) => i).filter((i) => problem.value === "noise" || !hidden[i]);
      const rows = few ? count.value : pixels.length,
        data = new Float64Array(rows * n);
      if (few) draw.normals(rows * n).forEach((value, i) => (data[i] = value / Math.sqrt(n)));
      else pixels.forEach((pixel, i) => (data[i * n + pixel] = 1));
      return { rows, cols: n, data };
    }

    function* upTo(most, steps) {
      for (const found of steps) {
        yield found;
        if (found?.count >= most) return;
      }
    }

    function display() {
      show("truth", x);
      show(
        "seen",
        problem.value === "few" ? back.map((value) => 0.5 + value) : back,
        problem.value === "hole" && hidden,
      );
      for (const cursor of cursors) cursor();
    }

    function measure() {
      waiting = false;
      const K = matrix(),
        s = 10 ** sigma.value,
        own = priors[prior.value];
      const y = live.added(live.product(K, x), normals(seed, K.rows), s);
      back = live.transposed(K, y);
      display();
      $("seen-text").value = `${K.rows} numbers`;
      $("hint").textContent = HINTS[problem.value];
      for (const [id, where] of Object.entries({ count: "few", "random-hole": "hole", "no-hole": "hole" }))
        $(id).closest("label, button").hidden = problem.value !== where;
      if (!K.rows) return;
      const others = own.latents.filter((_, i) => i % 9 === 4 && i !== patch.value - 1);
      const starts = others.map((code) => Float64Array.from(code));
      descending(live.descent(own, { K, y }, 10 ** weight.value * s * s, new Float64Array(k), STEPS));
      // A frame later: what is measured, and the first of those steps, are seen at once
      requestAnimationFrame(() => sampling(upTo(300, live.posterior(own, { K, y, sigma: s }, live.random(9), starts))));
    }

    const cursors = [
      paintable(
        "truth",
        (i, begins) => {
          if (begins !== null) x[i] = grey.value;
          if (begins !== null) ask();
          return `grey ${x[i].toFixed(2)}`;
        },
        display,
      ),
      paintable(
        "seen",
        (i, begins) => {
          if (problem.value !== "hole") return "";
          if (begins) hide = !hidden[i];
          if (begins !== null) {
            for (const [dx, dy] of begins ? [[0, 0]] : CORNERS) {
              if ((i % width) + dx < width && i + dy * width < n) hidden[i + dx + dy * width] = hide;
            }
            ask();
          }
          return hidden[i] ? "hidden" : "shown";
        },
        display,
      ),
    ];
    press("random-hole", () => {
      const draw = live.random((seed += 1));
      hidden = hidden.map(() => draw.uniform() < 0.8);
      ask();
    });
    press("no-hole", () => {
      hidden.fill(0);
      ask();
    });
    press("unpainted", () => {
      x = Float64Array.from(patches[patch.value - 1]);
      ask();
    });
    press("again", () => {
      seed += 1;
      ask();
    });
    $("try-inverse").hidden = false;
    x = Float64Array.from(patches[patch.value - 1]);
    hidden = hidden.map(
      (_, i) =>
        Math.abs(Math.floor(i / width) - height / 2 + 0.5) < height / 5 &&
        Math.abs((i % width) - width / 2 + 0.5) < width / 5,
    );
    new IntersectionObserver(([{ isIntersecting }]) => (visible = isIntersecting)).observe($("try-inverse"));
    measure();
  }

  const line = (points) => `M${points.map((at) => at.map((value) => value.toFixed(1)).join(" ")).join("L")}`;

  // Numbers below the base line of a chart
  const axis = (numbers, across) =>
    `<path class="base" d="M0 200H600"/>${numbers.map((at) => `<text x="${across(at)}" y="232">${signed(at, 0)}</text>`).join("")}`;

  function elbo() {
    const draws = [-1.4, -0.6, 0.1, 0.7, 1.5],
      g = (z) => Math.tanh(1.5 * z);
    const update = () => {
      const found = live.bound(mu.value, spread.value, x.value, 0.35, g, 8),
        across = (z) => 300 + 85 * z;
      const high = Math.max(...found.posterior, ...found.q),
        up = (value) => 200 - (180 * value) / high;
      const curve = (values) =>
        Array.from(values, (value, i) => [across(found.z[i]), up(value)]).filter(([at]) => at >= 0 && at <= 600);
      const ticks = draws.map((e) => across(mu.value + spread.value * e)).map((at) => `M${at.toFixed(1)} 200v14`);
      $("elbo").innerHTML =
        `<path class="area" d="${line([[0, 200], ...curve(found.posterior), [600, 200]])}"/><path class="curve" d="${line(curve(found.q))}"/><path class="curve" d="${ticks.join("")}"/>${axis([-3, -2, -1, 0, 1, 2, 3], across)}`;
      const numbers = {
        reconstruction: found.reconstruction,
        kl: found.kl,
        elbo: -found.elbo,
        evidence: -found.evidence,
        gap: found.evidence - found.elbo,
      };
      for (const [name, value] of Object.entries(numbers)) {
        const bar = $(`bar-${name}`).style,
          place = (nats) => 100 * clamp((nats + 1) / 11); // from -1 to 10 nats
        bar.marginLeft = `${place(Math.min(value, 0))}%`;
        bar.width = `${place(Math.max(value, 0)) - place(Math.min(value, 0))}%`;
        $(name === "elbo" ? "elbo-sum" : name).value = `${signed(value)} nats`;
      }
    };
    const mu = control("mu", (value) => signed(value), update),
      spread = control("spread", (value) => value.toFixed(2), update);
    const x = control("observed", (value) => signed(value), update);
    $("try-elbo").hidden = false;
    update();
  }

  function gan() {
    let game = null,
      seed = 0,
      running = false,
      last = null;
    const codes = normals(2, 1000);
    const begin = () => {
      game = live.game(live.random((seed += 1)), loss.value === "minimax");
      last = null;
      update();
    };
    const update = () => {
      const made = codes.map(game.generate),
        mean = made.reduce((a, b) => a + b) / made.length;
      const std = Math.sqrt(made.reduce((sum, value) => sum + (value - mean) ** 2, 0) / made.length);
      const low = -1,
        high = 4,
        across = (at) => (600 * (at - low)) / (high - low),
        bins = new Array(100).fill(0);
      made.forEach((value) => {
        const bin = Math.floor((100 * (value - low)) / (high - low));
        if (bin >= 0 && bin < 100) bins[bin] += 1;
      });
      const most = Math.max(100, ...bins),
        places = Array.from({ length: 101 }, (_, i) => low + (i * (high - low)) / 100);
      const bars = bins
        .map((count, i) =>
          count ? `M${6 * i} 200v${((-180 * count) / most).toFixed(1)}h5v${((180 * count) / most).toFixed(1)}z` : "",
        )
        .join("");
      const target = places.map((at) => [across(at), 200 - 90 * Math.exp(-0.5 * ((at - 1.5) / 0.2) ** 2)]);
      $("gan").innerHTML =
        `<path class="area" d="${line([[0, 200], ...target, [600, 200]])}"/><path class="bar" d="${bars}"/><path class="curve" d="${line(places.map((at) => [across(at), 200 - 180 * game.judge(at)]))}"/><path class="half" d="M0 110H600"/>${axis([0, 1, 2, 3], across)}`;
      const losses = last ? `; loss of D ${signed(last.d)}, of G ${signed(last.g)}` : "";
      $("gan-text").value =
        `step ${last ? last.step : 0}: mean ${signed(mean)}, spread ${std.toFixed(3)}, the target’s are 1.50 and 0.200${losses}`;
    };
    const frame = () => {
      if (!running) return;
      for (let i = 0; i < 4; i++) last = game.step();
      update();
      requestAnimationFrame(frame);
    };
    const loss = control("gan-loss", String, begin);
    press("gan-step", () => {
      last = game.step();
      update();
    });
    press("gan-run", () => {
      running = !running;
      $("gan-run").textContent = running ? "Pause" : "Run";
      $("gan-run").setAttribute("aria-pressed", running);
      frame();
    });
    press("gan-begin", begin);
    $("try-gan").hidden = false;
    begin();
  }

  for (const widget of [codes, inverse, elbo, gan]) widget();
  document.querySelector(".live-failed").hidden = true;
})();
