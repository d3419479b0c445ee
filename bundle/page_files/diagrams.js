// The chart over slices, and the network with its layers.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Evidence (largest of each slice), tumor probability and area of the mask, over slices; a click or drag chooses one.
export function drawChart(svg, {count, at, most, area, probabilities, threshold, plane}) {
  const [wide, high, left, right, top, bottom] = [svg.clientWidth || 600, svg.clientHeight || 96, 30, 8, 8, 18];
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  const x = slice => left + ((slice + 0.5) / count) * (wide - left - right);
  const y = value => top + (1 - value) * (high - top - bottom);
  const parts = [];
  for (const value of [0, 0.5, 1]) {
    parts.push(element("line", {x1: left, x2: wide - right, y1: y(value), y2: y(value), class: "grid"}));
    parts.push(element("text", {x: left - 5, y: y(value) + 4, "text-anchor": "end"}, String(value)));
  }
  const biggest = Math.max(...area), step = (wide - left - right) / count;
  if (biggest > 0) {
    area.forEach((value, i) => {
      if (value > 0) {
        const tall = (value / biggest) * (high - top - bottom);
        parts.push(element("rect", {x: x(i) - step / 2, width: Math.max(1, step - 0.5), y: high - bottom - tall, height: tall, class: "mask"}));
      }
    });
  }
  const line = values => [...values].map((value, i) => `${x(i).toFixed(1)},${y(Math.max(0, Math.min(1, value))).toFixed(1)}`);
  parts.push(element("polyline", {points: line(most).join(" "), class: "evidence"}));
  if (probabilities) {
    let run = [];
    const flush = () => {
      if (run.length) parts.push(element("polyline", {points: run.join(" "), class: "probability"}));
      run = [];
    };
    probabilities.forEach((value, i) => (value === null ? flush() : run.push(`${x(i).toFixed(1)},${y(value).toFixed(1)}`)));
    flush();
    parts.push(element("line", {x1: left, x2: wide - right, y1: y(threshold), y2: y(threshold), class: "threshold"}));
  }
  parts.push(element("line", {x1: x(at), x2: x(at), y1: top - 4, y2: high - bottom, class: "now"}));
  for (const [slice, anchor] of [[0, "start"], [count - 1, "end"]]) {
    parts.push(element("text", {x: x(slice), y: high - 4, "text-anchor": anchor}, `${plane} ${slice + 1}`));
  }
  if (at > count * 0.12 && at < count * 0.88) parts.push(element("text", {x: x(at), y: high - 4, "text-anchor": "middle", class: "here"}, String(at + 1)));
  svg.replaceChildren(...parts);
  svg.sliceAt = clientX => {
    const box = svg.getBoundingClientRect();
    const share = ((clientX - box.left) * (wide / box.width) - left) / (wide - left - right);
    return Math.max(0, Math.min(count - 1, Math.floor(share * count)));
  };
}

// The network as a U: encoder down the left, decoder up the right, evidence in the middle. `choose` hears a layer's name.
export function drawNetwork(svg, layers, offered, chosen, choose) {
  const down = layers.filter(name => name === "input_block" || name.startsWith("downsamples."));
  const up = layers.filter(name => name.startsWith("upsamples.")), rows = down.length + 1;
  const [wide, box, tall] = [280, 84, 24], rise = 34, high = rows * rise + 40;
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  const place = {input: [2, 6]};
  down.forEach((name, i) => (place[name] = [2, 40 + i * rise]));
  place.bottleneck = [98, 40 + down.length * rise - 6];
  up.forEach((name, i) => (place[name] = [wide - box - 2, 40 + (down.length - 1 - i) * rise]));
  if (layers.includes("head.features")) place["head.features"] = [98, 40 + (down.length - 2) * rise - 4];
  const words = {input: "image", input_block: "input block", bottleneck: "bottleneck", "head.features": "evidence head"};
  const label = name => words[name] ?? name.replace("downsamples.", "down ").replace("upsamples.", "up ");
  const center = name => [place[name][0] + box / 2, place[name][1] + tall / 2];
  const parts = [];
  const join = (from, to, kind = "wire") => {
    if (!place[from] || !place[to]) return;
    const [[x1, y1], [x2, y2]] = [center(from), center(to)];
    parts.push(element("line", {x1, y1, x2, y2, class: kind}));
  };
  const way = ["input", ...down, "bottleneck", ...up];
  way.slice(1).forEach((name, i) => join(way[i], name));
  down.slice().reverse().forEach((name, i) => join(name, up[i], "wire skip"));
  if (place["head.features"]) [down.at(-1), "bottleneck"].forEach(name => join(name, "head.features", "wire head"));
  for (const [name, [x, y]] of Object.entries(place)) {
    const able = offered.includes(name);
    const group = element("g", {class: `node${able ? " able" : ""}${name === chosen ? " chosen" : ""}`, role: "button", "aria-label": `layer ${name}`, "aria-pressed": String(name === chosen), "aria-disabled": String(!able), ...(able ? {tabindex: 0} : {})});
    group.append(element("title", {}, name), element("rect", {x, y, width: box, height: tall, rx: 4}), element("text", {x: x + box / 2, y: y + tall / 2 + 4, "text-anchor": "middle"}, label(name)));
    if (able) {
      group.addEventListener("click", () => choose(name));
      group.addEventListener("keydown", event => ["Enter", " "].includes(event.key) && (event.preventDefault(), choose(name)));
    }
    parts.push(group);
  }
  svg.replaceChildren(...parts);
}
