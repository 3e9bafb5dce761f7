"use strict";
// Draws the figures of a report from the data in #figures, and filters its responses.
const data = JSON.parse(document.getElementById("figures").textContent);
const percent = (x) => `${+(x * 100).toFixed(1)} %`;
const COLORS = ["var(--base)", "var(--edited)", "var(--second)", "var(--third)", "var(--fourth)"];
const unique = (items) => [...new Set(items)];
const TIP = { lineHeight: 1.3, fontSize: 12 };
let widest = 940;
const frame = (node) => Math.min(node.clientWidth || 640, widest);

function plotted(width, label, options) {
  const made = Plot.plot({ width, ariaLabel: label, style: { background: "none", fontSize: 11.5 }, ...options });
  made.setAttribute("role", "img"); // one picture with one label, not a hundred parts
  for (const part of made.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
  return made;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function choice(title, options, value, changed) {
  const made = element("select", {}, ...Object.entries(options).map(([key, text]) => new Option(text, key)));
  made.value = value;
  made.addEventListener("change", () => changed(made.value));
  return element("label", {}, title, made);
}

function legend(entries) {
  const list = element("ul", { className: "legend" });
  for (const [name, symbol, color, filled] of entries) {
    const item = element("li", {}, name);
    const shape = Plot.plot({ width: 14, height: 14, margin: 0, axis: null, x: { domain: [-1, 1] }, y: { domain: [-1, 1] },
      marks: [Plot.dot([[0, 0]], { symbol, r: 4.5, stroke: color, strokeWidth: 1.6, fill: filled ? color : "none" })] });
    shape.setAttribute("aria-hidden", "true");
    item.prepend(shape);
    list.append(item);
  }
  return list;
}

const modelColors = (rows) => {
  const models = unique(rows.map((row) => row.model));
  return { domain: models, range: models.map((_, i) => COLORS[i % COLORS.length]) };
};

const modelLegend = (rows) => {
  const { domain, range } = modelColors(rows);
  return legend(domain.map((model, i) => [model, "circle", range[i], true]));
};

// Shares with intervals: one row for a measure, one line and dot in it for a model.
function shares(drawing, rows) {
  const width = frame(drawing), narrow = width < 560, between = 13, head = narrow ? 15 : 0;
  const color = modelColors(rows), models = color.domain, measures = unique(rows.map((row) => row.measure));
  const ticks = narrow ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  const plot = plotted(width, "Shares with intervals", {
    height: measures.length * (between * models.length + 14 + head) + 24, marginLeft: narrow ? 14 : 210, marginRight: 62, marginTop: 0, marginBottom: 24, color,
    x: { domain: [0, 1] }, y: { type: "point", domain: models, axis: null, padding: 1, insetTop: head }, fy: { domain: measures, axis: null, padding: 0 },
    marks: [
      Plot.ruleX(ticks, { stroke: "var(--rule)" }),
      Plot.axisX(ticks, { tickSize: 3, label: null, tickFormat: percent }),
      Plot.text(measures, { fy: (d) => d, text: (d) => d, frameAnchor: narrow ? "top-left" : "left", dx: narrow ? -12 : -205, dy: narrow ? 3 : 0, fontSize: 13, stroke: "var(--paper)", strokeWidth: 4, fill: "var(--ink)" }),
      Plot.ruleY(rows, { fy: "measure", y: "model", x1: "low", x2: "high", stroke: "model", strokeWidth: 2 }),
      Plot.dot(rows, { fy: "measure", x: "rate", y: "model", fill: "model", r: 4.5, stroke: "var(--paper)" }),
      Plot.text(rows, { fy: "measure", y: "model", frameAnchor: "right", dx: 8, textAnchor: "start", text: (d) => `${d.count}/${d.n}`, fontVariant: "tabular-nums", fill: "model" }),
      Plot.tip(rows, Plot.pointer({ ...TIP, fy: "measure", x: "rate", y: "model", title: (d) => `${d.model}\n${d.count}/${d.n}: ${percent(d.rate)}\n95 % interval ${percent(d.low)} to ${percent(d.high)}` })),
    ] });
  drawing.replaceChildren(modelLegend(rows), plot);
}

const KINDS = {
  searched: ["searched", "circle", "var(--base)"],
  fitted: ["fitted", "diamond", "var(--edited)"],
  pruned: ["pruned, there or worse", "times", "var(--soft)"],
  other: ["another run", "triangle", "var(--second)"],
  base: ["base model", "square", "var(--ink)"],
  model: ["edited model", "circle"],
};

function frontier(points, x, y) {
  const line = [];
  for (const point of [...points].sort((a, b) => a.values[x][0] - b.values[x][0] || a.values[y][0] - b.values[y][0]))
    if (!line.length || point.values[y][0] < line.at(-1).values[y][0]) line.push(point);
  return line;
}

function front(drawing, { points, scales, shares, axes, maximised, target, noise }, controls) {
  const better = (scale) => (maximised.includes(scale) ? -1 : 1);
  const there = Object.fromEntries(Object.entries(scales).filter(([name]) => points.filter((p) => p.values[name]).length > 1));
  let [x, y] = axes && axes.every((name) => there[name]) ? axes : [there.token_kl ? "token_kl" : "kl_divergence", "failures"], log = true;
  const divergence = (name) => name.includes("kl"), share = (name) => shares.includes(name);
  const color = (p) => (p.kind === "model" ? COLORS[points.indexOf(p) % COLORS.length] : KINDS[p.kind][2]);
  const title = (p) => [p.name + (p.chosen ? ", shown in this report" : "") + (p.kind === "pruned" ? ", pruned: there or worse" : ""),
    ...Object.entries(there).filter(([name]) => p.values[name]).map(([name, text]) => {
      const [value, low, high] = p.values[name];
      const text_of = share(name) ? percent : (number) => number.toPrecision(3), shown = text_of(value);
      const range = low === undefined ? "" : ` (${text_of(low)} to ${text_of(high)})`;
      return `${text.replace(", nats", "")}: ${shown}${range}`;
    }), p.text].filter(Boolean).join("\n");
  const check = element("input", { type: "checkbox", checked: log });
  const draw = () => {
    const floor = Math.max(noise || 1e-5, 1e-6) / 3, logs = (name) => log && divergence(name);
    const at = (name) => (p) => (logs(name) ? Math.max(p.values[name][0], floor) : p.values[name][0]);
    const end = (name, i) => (p) => (p.values[name][i] === undefined ? at(name)(p) : logs(name) ? Math.max(p.values[name][i], floor) : p.values[name][i]);
    const shown = points.filter((p) => p.values[x] && p.values[y] && !(p.kind === "base" && logs(x)));
    const base = points.find((p) => p.kind === "base");
    const whole = shown.filter((p) => !["pruned", "base", "other"].includes(p.kind));
    const lead = whole.filter((p) => p.chosen || p.kind === "model"), chosen = whole.filter((p) => p.chosen);
    const line = better(x) < 0 || better(y) < 0 || target === undefined ? [] : frontier(whole.filter((p) => !p.violates), x, y);
    const width = frame(drawing);
    const scale = (name) => ({ label: there[name], grid: true, type: logs(name) ? "log" : "linear", ...(logs(name) ? { tickFormat: "~g" } : share(name) ? { tickFormat: percent } : {}), nice: !logs(name) });
    const marks = [
      ...(x === "kl_divergence" && target ? [Plot.ruleX([target], { stroke: "var(--soft)", strokeDasharray: "2,4" }),
        Plot.text([target], { x: (d) => d, frameAnchor: "top", text: () => "KL target", dx: -5, textAnchor: "end", fill: "var(--soft)" })] : []),
      ...(base && base.values[y] && !divergence(y) ? [Plot.ruleY([base.values[y][0]], { stroke: "var(--ink)", strokeDasharray: "2,4" }),
        Plot.text([base.values[y][0]], { y: (d) => d, frameAnchor: "left", text: () => "base model", dx: 4, dy: -8, fill: "var(--soft)" })] : []),
      Plot.line(line, { x: at(x), y: at(y), curve: "step-after", stroke: "var(--edited)", strokeOpacity: 0.55 }),
      Plot.ruleX(lead, { x: at(x), y1: end(y, 1), y2: end(y, 2), stroke: color, strokeWidth: 1.5 }),
      Plot.ruleY(lead, { y: at(y), x1: end(x, 1), x2: end(x, 2), stroke: color, strokeWidth: 1.5 }),
      ...Object.entries(KINDS).map(([kind, [, symbol]]) => Plot.dot(shown.filter((p) => p.kind === kind), {
        x: at(x), y: at(y), symbol, stroke: color, r: 4.5, strokeWidth: 1.5, className: "point", fill: (p) => (p.front || p.chosen || p.kind === "model" || p.kind === "base" ? color(p) : "var(--paper)"),
      })),
      Plot.dot(chosen, { x: at(x), y: at(y), r: 9, stroke: "var(--edited)", strokeWidth: 1.5 }),
      Plot.text(chosen, { x: at(x), y: (p) => Math.max(at(y)(p), end(y, 2)(p)), text: "name", dy: -15, fontWeight: 600, fill: "var(--edited)", stroke: "var(--paper)", strokeWidth: 4 }),
      Plot.tip(shown, Plot.pointer({ ...TIP, x: at(x), y: at(y), title, lineWidth: width < 560 ? 20 : 26, maxRadius: 24 })),
    ];
    const plot = plotted(width, `${there[y]} against ${there[x]}`, {
      height: Math.max(300, Math.min(430, width * 0.6)), inset: 12, marginLeft: 52, marginBottom: 42, marginRight: width < 560 ? 24 : 60, marginTop: 30, color: { type: "identity" }, x: scale(x), y: scale(y), marks });
    plot.addEventListener("click", () => plot.value && document.dispatchEvent(new CustomEvent("trial", { detail: plot.value.name })));
    const kinds = unique(points.map((p) => p.kind)).filter((kind) => kind !== "base" || !logs(x));
    const entries = kinds.flatMap((kind) => (kind === "model" ? lead.map((p) => [p.name, "circle", color(p), true]) : [[...KINDS[kind], kind === "base"]]));
    drawing.replaceChildren(legend(entries), plot);
  };
  if (!controls.children.length) {
    check.addEventListener("change", () => { log = check.checked; draw(); });
    controls.append(choice("Up", there, y, (value) => { y = value; draw(); }), choice("Across", there, x, (value) => { x = value; draw(); }));
    controls.append(element("label", { className: "check" }, check, "divergences on a logarithmic scale"));
  }
  draw();
  return draw;
}

function strengths(drawing, { trials, fits, shown, layers }, controls) {
  let current = shown;
  const of = (name) => {
    const trial = trials[name];
    if (!trial || trial.of) return trial?.of ?? {};
    return Object.fromEntries(Object.entries(fits[trial.fit]).map(([part, values]) => [part, values.map((value) => value * trial.scale)]));
  };
  const rows = (name) => Object.entries(of(name)).flatMap(([component, values]) => values.map((strength, layer) => ({ component, layer, strength })));
  const draw = () => {
    const own = rows(current), start = trials[current]?.start, before = start ? rows(start) : [];
    const components = unique([...before, ...own].map((row) => row.component)).sort(), colors = ["var(--edited)", "var(--second)", "var(--third)"], symbols = ["circle", "square", "triangle", "diamond"];
    const color = { domain: components, range: colors };
    const plot = plotted(frame(drawing), `Strengths of ${current} by layer`, {
      height: 280, marginLeft: 46, marginTop: 26, marginBottom: 40, color, symbol: { domain: components, range: symbols }, x: { label: "layer", domain: [0, layers - 1] }, y: { label: "strength", grid: true, nice: true },
      marks: [
        Plot.ruleY([0]), Plot.ruleY([1], { stroke: "var(--soft)", strokeDasharray: "2,4" }),
        Plot.text([1], { y: (d) => d, frameAnchor: "right", text: () => "removed", dy: -7, textAnchor: "end", fill: "var(--soft)" }),
        Plot.line(before, { x: "layer", y: "strength", stroke: "component", strokeOpacity: 0.6, strokeDasharray: "4,3" }),
        Plot.line(own, { x: "layer", y: "strength", stroke: "component", strokeWidth: 1.8 }),
        Plot.dot(own, { x: "layer", y: "strength", fill: "component", symbol: "component", r: 2.6 }),
        Plot.tip(own, Plot.pointer({ ...TIP, x: "layer", y: "strength", title: (d) => `layer ${d.layer}, ${d.component}\nstrength ${d.strength.toFixed(3)}` })),
      ] });
    const about = `Strengths of ${current}${start ? `; dashed: ${start}, which it was fitted from` : ""}.`;
    drawing.replaceChildren(element("p", { textContent: about }), legend(components.map((name, i) => [name, symbols[i % symbols.length], colors[i % colors.length], true])), plot);
    for (const row of document.querySelectorAll(".trials tbody tr")) row.classList.toggle("shown", `trial ${row.cells[0].textContent}` === current);
  };
  if (controls && !controls.children.length) {
    const names = Object.keys(trials).sort((a, b) => a.slice(6) - b.slice(6));
    const select = choice("Trial", Object.fromEntries(names.map((name) => [name, name])), current, (value) => { current = value; draw(); });
    controls.append(select);
    document.addEventListener("trial", ({ detail }) => {
      if (!trials[detail]) return;
      current = select.querySelector("select").value = detail;
      draw();
    });
    for (const row of document.querySelectorAll(".trials tbody tr")) {
      const choose = () => document.dispatchEvent(new CustomEvent("trial", { detail: `trial ${row.cells[0].textContent}` }));
      row.tabIndex = 0;
      row.addEventListener("click", choose);
      row.addEventListener("keydown", (event) => event.key === "Enter" && choose());
    }
  }
  draw();
  return draw;
}

function small(width, title, rows, { x, y, label, color = "var(--edited)", height = 130, domain }) {
  const shape = (value) => (Math.abs(value) >= 0.01 ? value.toFixed(3) : value.toPrecision(2));
  return plotted(width, title, {
    height, marginLeft: 44, marginTop: 10, marginBottom: 30, marginRight: 12, x: { label }, y: { label: null, grid: true, ticks: 4, nice: true, domain },
    marks: [Plot.lineY(rows, { x, y, stroke: color, strokeWidth: 1.6 }),
      Plot.tip(rows, Plot.pointerX({ ...TIP, x, y, title: (d) => `${label} ${d[x]}: ${shape(d[y])}` }))] });
}

function fits(drawing, found) {
  drawing.replaceChildren(...found.map(({ title, curve }) => {
    const names = unique(curve.flatMap(Object.keys)), box = element("div", { className: "plots" });
    drawing.append(element("p", { textContent: title }), box);
    for (const name of names) {
      const rows = curve.map((step, i) => ({ step: i + 1, value: step[name] })).filter((row) => row.value !== undefined);
      const about = `${name}: ${rows[0].value.toPrecision(3)} → ${rows.at(-1).value.toPrecision(3)}`;
      box.append(element("div", {}, element("p", { textContent: about })));
      const width = Math.min(box.lastChild.clientWidth || 260, 420);
      box.lastChild.append(small(width, `${title}: ${name}`, rows, { x: "step", y: "value", label: "step", color: name === "loss" ? "var(--ink)" : "var(--edited)" }));
    }
    return element("div", {}, element("p", { textContent: title }), box);
  }));
}

function layers(drawing, found) {
  const box = element("div", { className: "plots wide" });
  drawing.replaceChildren(box);
  for (const { title, values } of Object.values(found)) {
    const rows = values.map((value, layer) => ({ layer, value })).filter((row) => row.value !== null), part = element("div", {}, element("p", { textContent: title }));
    box.append(part);
    part.append(small(frame(part), title, rows, { x: "layer", y: "value", label: "layer", color: "var(--second)" }));
  }
}

const VIEWS = {
  pca: ["PCA", "first axis", "second axis", "The plane of most variance of each layer, in units of the spread in it, turned to follow the layer below. It does not know which prompt is of which set."],
  means: ["difference of the means", "difference of the means", "most variance at right angles to it", "The plane of the difference of the means and the most variance at right angles to it, both in standard deviations. It was made from these points, so that any two sets part in it somewhat; the separation above is measured on prompts that did not make the direction."],
  pacmap: ["PaCMAP", "first axis", "second axis", "PaCMAP keeps neighbours together; how far apart groups lie says little. Every layer begins as the one below and is turned to follow it."],
};

function residuals(drawing, { sets, kinds, texts, views }, controls) {
  const names = Object.keys(VIEWS).filter((name) => views[name]), last = views[names[0]].layers.length - 1;
  const fallback = { benign: "var(--second)", target: "var(--edited)" }, PACE = 600;
  const color = (kind) => sets[kind].color || fallback[kind], symbol = (kind) => (kind === "target" ? "diamond" : "circle");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let current = names[0], place = Math.round(last / 2), timer = null;
  const slider = element("input", { type: "range", min: 0, max: last, step: 1, value: place, ariaLabel: "Layer" });
  const said = element("output", {}), play = element("button", { type: "button", textContent: "Play" });
  const stop = () => { cancelAnimationFrame(timer); timer = null; place = Math.round(place); play.textContent = "Play"; };
  const draw = () => {
    const { low, step, layers } = views[current], [title, across, up, about] = VIEWS[current];
    const below = Math.floor(place), above = Math.min(below + 1, last), part = place - below;
    const value = (k) => low + step * (layers[below][k] * (1 - part) + layers[above][k] * part);
    const range = (axis) => { const all = layers.flatMap((layer) => layer.filter((_, k) => k % 2 === axis)); return [low + step * Math.min(...all), low + step * Math.max(...all)]; };
    const rows = kinds.map((kind, i) => ({ kind, text: texts[i], x: value(2 * i), y: value(2 * i + 1) }));
    const width = frame(drawing), layer = Math.round(place);
    slider.value = layer;
    said.textContent = `${layer} of ${last}`;
    const plot = plotted(width, `Residuals at layer ${layer}, ${title}`, {
      height: Math.min(460, width * 0.75), marginLeft: 46, marginBottom: 42, marginTop: 26, inset: 8, color: { type: "identity" }, symbol: { type: "identity" },
      x: { domain: range(0), label: across, grid: true }, y: { domain: range(1), label: up, grid: true },
      marks: [
        Plot.dot(rows, { x: "x", y: "y", stroke: (d) => color(d.kind), fill: (d) => (d.kind === "target" ? color(d.kind) : "none"), symbol: (d) => symbol(d.kind), r: 3.6, fillOpacity: 0.6 }),
        ...(timer ? [] : [Plot.tip(rows, Plot.pointer({ ...TIP, x: "x", y: "y", title: (d) => `${sets[d.kind].label}\n${d.text}`, lineWidth: width < 560 ? 14 : 24 }))]),
      ] });
    const key = legend(Object.keys(sets).map((kind) => [sets[kind].label, symbol(kind), color(kind), kind === "target"]));
    drawing.replaceChildren(element("p", { textContent: `Layer ${layer} of ${last}. ${about}` }), key, plot);
  };
  if (!controls.children.length) {
    slider.addEventListener("input", () => { stop(); place = +slider.value; draw(); });
    play.addEventListener("click", () => {
      if (timer) { stop(); draw(); return; }
      const from = place >= last ? 0 : place;
      let began = null;
      const tick = (now) => {
        const passed = from + (now - (began ??= now)) / PACE, before = place;
        place = Math.min(last, still ? Math.floor(passed) : passed); // whole layers for those who want no motion
        timer = requestAnimationFrame(tick);
        if (place >= last) stop();
        if (place !== before || !timer) draw();
      };
      play.textContent = "Stop";
      timer = requestAnimationFrame(tick);
    });
    if (names.length > 1)
      controls.append(choice("Projection", Object.fromEntries(names.map((name) => [name, VIEWS[name][0]])), current, (value) => { current = value; draw(); }));
    controls.append(play, element("label", {}, "Layer", slider), said);
  }
  draw();
  return draw;
}

// The direction at every token and layer, and the odds of the first token.
function tokens(drawing, { layers, prompts }, controls) {
  let current = 0;
  const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const short = (text) => (text.length > 12 ? `${text.slice(0, 11)}…` : text);
  const grid = (title, values, texts, most, width) => {
    const rows = values.flatMap((row, i) => row.map((value, token) => ({ value, token, layer: layers[i] })));
    const [left, top, bottom] = [34, 8, 84], side = Math.min((width - left - 8) / texts.length, 15);
    const color = ({ value }) => `color-mix(in oklab, var(${value < 0 ? "--second" : "--edited"}) ${Math.round((100 * Math.abs(value)) / most)}%, var(--raised))`;
    const box = element("div", {}, element("p", { textContent: title }));
    const all = Array.from({ length: layers.at(-1) - layers[0] + 1 }, (_, i) => layers[0] + i);
    box.append(plotted(width, title, {
      width: left + 8 + side * texts.length, height: top + bottom + side * all.length, marginLeft: left, marginRight: 8, marginTop: top, marginBottom: bottom, color: { type: "identity" }, symbol: { type: "identity" }, r: { type: "identity" },
      x: { type: "point", domain: texts.map((_, i) => i), padding: 0.5, tickFormat: (i) => short(texts[i]), tickRotate: -60, tickSize: 0, label: null },
      y: { type: "point", domain: all.reverse(), padding: 0.5, ticks: all.filter((layer) => layer % 5 === 0), label: "layer" },
      marks: [
        Plot.dot(rows, { x: "token", y: "layer", fill: color, symbol: "square", r: (side - 0.5) / Math.sqrt(Math.PI) }),
        Plot.tip(rows, Plot.pointer({ ...TIP, x: "token", y: "layer", title: (d) => `${visible(texts[d.token])}\nlayer ${d.layer}: ${d.value.toFixed(3)}` })),
      ] }));
    return box;
  };
  const odds = (rows, width) => {
    const ends = rows.flatMap((row, i) => [["base model", row.base], ["edited", row.edited]].map(([model, value]) => ({ i, model, value })));
    const color = { domain: ["base model", "edited"], range: ["var(--base)", "var(--edited)"] };
    return plotted(width, "Probabilities of the first token", {
      height: rows.length * 20 + 54, marginLeft: 104, marginTop: 8, marginBottom: 40, marginRight: 20, color,
      x: { domain: [0, Math.max(...ends.map((d) => d.value))], nice: true, tickFormat: percent, label: "probability of the first token", grid: true, ticks: width < 560 ? 3 : 5 },
      y: { type: "point", domain: rows.map((_, i) => i), padding: 0.5, tickFormat: (i) => short(visible(rows[i].token)), tickSize: 0, label: null },
      marks: [
        Plot.ruleY(rows, { y: (_, i) => i, x1: "base", x2: "edited", stroke: "var(--soft)", strokeWidth: 1.2 }),
        Plot.dot(ends, { x: "value", y: "i", fill: "model", r: 4.2, stroke: "var(--paper)" }),
        Plot.tip(ends, Plot.pointer({ ...TIP, x: "value", y: "i", title: (d) => `${visible(rows[d.i].token)}\n${d.model}: ${percent(d.value)}` })),
      ] });
  };
  const draw = () => {
    const { base, edited, first, tokens: texts } = prompts[current], width = frame(drawing);
    const shown = texts.map(visible), most = Math.max(...[...base, ...edited].flat().map(Math.abs), 1e-3);
    const wide = width > 700, half = wide ? (width - 24) / 2 : width, pair = element("div", { className: "grids" });
    pair.append(grid("Base model", base, shown, most, half), grid("Edited", edited, shown, most, half));
    const key = legend([[`target side, up to ${most.toFixed(2)}`, "square", "var(--edited)", true], ["benign side", "square", "var(--second)", true]]);
    drawing.replaceChildren(key, pair, legend([["base model", "circle", "var(--base)", true], ["edited", "circle", "var(--edited)", true]]), odds(first, width));
  };
  if (!controls.children.length)
    controls.append(choice("Prompt", Object.fromEntries(prompts.map(({ set, text }, i) => [i, `${set}: ${text}`])), 0, (value) => { current = +value; draw(); }));
  draw();
  return draw;
}

function lengths(drawing, rows) {
  const color = modelColors(rows);
  const plot = plotted(frame(drawing), "Refusals by length of the response", {
    height: 240, marginLeft: 46, marginTop: 24, marginBottom: 40, color, x: { label: "tokens of the response" }, y: { domain: [0, 1], tickFormat: percent, label: "refused", grid: true },
    marks: [
      Plot.areaY(rows, { x: "tokens", y1: "low", y2: "high", fill: "model", fillOpacity: 0.14 }),
      Plot.lineY(rows, { x: "tokens", y: "rate", stroke: "model", strokeWidth: 1.8 }),
      Plot.dot(rows, { x: "tokens", y: "rate", fill: "model", r: 3 }),
      Plot.tip(rows, Plot.pointer({ ...TIP, x: "tokens", y: "rate", title: (d) => `${d.model}\n${d.count}/${d.n} after ${d.tokens} tokens\n${percent(d.low)} to ${percent(d.high)}` })),
    ] });
  drawing.replaceChildren(modelLegend(rows), plot);
}

function control(drawing, rows) {
  const color = { domain: ["base model", "the edit", "random directions"], range: ["var(--base)", "var(--edited)", "var(--second)"] };
  const plot = plotted(frame(drawing), "Failures against KL of the edit and of random directions", {
    height: 240, marginLeft: 46, marginTop: 24, marginBottom: 40, color, x: { label: "first-token KL, nats", nice: true, ticks: 4 }, y: { domain: [0, 1], tickFormat: percent, label: rows[0].what, grid: true },
    marks: [
      Plot.ruleX(rows, { x: "kl", y1: "low", y2: "high", stroke: "model", strokeWidth: 1.6 }),
      Plot.dot(rows, { x: "kl", y: "rate", fill: "model", r: 4.5, stroke: "var(--paper)" }),
      Plot.tip(rows, Plot.pointer({ ...TIP, x: "kl", y: "rate", title: (d) => `${d.model}\n${d.count}/${d.n} ${d.what}\nKL ${d.kl.toPrecision(3)}` })),
    ] });
  drawing.replaceChildren(legend(color.domain.map((name, i) => [name, "circle", color.range[i], true])), plot);
}

function responses() {
  const form = document.getElementById("filters");
  if (!form) return;
  const STEP = 12, articles = [...document.querySelectorAll("#exchanges article")], more = document.getElementById("more");
  let most = STEP;
  const texts = articles.map((article) => article.textContent.toLowerCase());
  const fill = (select, values) => unique(values).forEach((value) => select.append(new Option(value.replace("_", " "), value)));
  fill(form.elements.set, articles.map((article) => article.dataset.set));
  const labels = [...form.querySelectorAll("[data-model]")];
  labels.forEach((select, i) => fill(select, articles.map((article) => article.dataset.labels.split(" ")[i])));
  const show = () => {
    const wanted = form.elements.text.value.trim().toLowerCase(), set = form.elements.set.value, changed = form.elements.changed.checked;
    let found = 0;
    articles.forEach((article, i) => {
      const own = article.dataset.labels.split(" ");
      const fits = (!set || article.dataset.set === set) && (!changed || "changed" in article.dataset) && texts[i].includes(wanted) &&
        labels.every((select, k) => !select.value || select.value === own[k]);
      found += fits;
      article.hidden = !fits || found > most;
    });
    form.querySelector("output").textContent = found ? `${Math.min(found, most)} of ${found} shown` : "Nothing found";
    more.parentElement.hidden = found <= most;
  };
  form.addEventListener("input", () => { most = STEP; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { most += 4 * STEP; show(); });
  show();
}

const FIGURES = { counts: shares, axes: shares, front, strengths, fits, layers, residuals, tokens, lengths, control };
const redraw = [];
for (const figure of document.querySelectorAll("[data-figure]")) {
  const name = figure.dataset.figure, drawing = figure.querySelector("[data-drawing]"), controls = figure.querySelector("[data-controls]");
  const again = FIGURES[name](drawing, data[name], controls) ?? (() => FIGURES[name](drawing, data[name], controls));
  redraw.push(again);
}
responses();
for (const [event, most] of [["beforeprint", 680], ["afterprint", 940]])
  addEventListener(event, () => { widest = most; redraw.forEach((draw) => draw()); });
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  redraw.forEach((draw) => draw());
});
