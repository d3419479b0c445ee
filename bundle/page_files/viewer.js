// The viewer: slices of an image with mask and map, on one canvas that is what the screen shows and what is saved.

import {planesOf, walk} from "./geometry.js";

const LEGEND = [46, 64], GAP = 6, FONT = "system-ui, sans-serif";
const LARGEST = 16, HEAD = 22;

export class Viewer {
  constructor(canvas, setup, changed) {
    this.canvas = canvas;
    this.colors = setup.colors;
    this.maskColor = setup.mask_color;
    this.changed = changed;
    this.buffer = document.createElement("canvas");
    this.scan = null;
    this.panes = [];
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    this.listen();
  }

  // scan: {image, mask, maps, affine, picture, located}; view: what of it is seen, changed in place.
  show(scan, view) {
    this.scan = scan;
    this.view = view;
    this.planes = planesOf({...scan, shape: scan.image.shape});
    this.draw();
  }

  wanted() {
    const {maps} = this.scan, {layout, plane} = this.view;
    if (layout === "three" && !this.scan.picture) {
      return Object.keys(this.planes).map(name => ({plane: name, map: maps[0], title: name}));
    }
    return (maps.length ? maps : [null]).map(map => ({plane, map, title: map ? map.title : this.scan.title}));
  }

  draw() {
    if (!this.scan) return;
    const {canvas} = this, box = canvas.parentElement, ratio = window.devicePixelRatio || 1;
    const wide = Math.max(1, Math.round(box.clientWidth * ratio)), high = Math.max(1, Math.round(box.clientHeight * ratio));
    if (canvas.width !== wide) canvas.width = wide;
    if (canvas.height !== high) canvas.height = high;
    const pen = canvas.getContext("2d");
    this.ratio = ratio;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, wide, high);
    this.small = wide / ratio < 560;
    const room = high - LEGEND[this.small ? 1 : 0] * ratio, panes = this.wanted();
    const side = columns => Math.min(wide / columns, room / Math.ceil(panes.length / columns));
    let columns = 1;
    for (let n = 2; n <= panes.length; n++) if (side(n) > side(columns)) columns = n;
    const rows = Math.ceil(panes.length / columns), gap = panes.length > 1 ? GAP * ratio : 0;
    this.panes = panes.map((pane, i) => {
      const width = (wide - gap * (columns - 1)) / columns, height = (room - gap * (rows - 1)) / rows;
      const area = {
        x: (i % columns) * (width + gap), y: Math.floor(i / columns) * (height + gap), width, height,
      };
      return this.drawPane(pen, pane, area);
    });
    this.drawLegend(pen, room, wide);
    canvas.setAttribute("aria-label", this.inWords());
  }

  drawPane(pen, pane, area) {
    const {scan, view, ratio} = this, plane = this.planes[pane.plane];
    const number = view.at[plane.name], place = walk(scan.image.shape, plane, number);
    const {columns, rows} = place;
    const head = HEAD * ratio, [middle, center] = this.centerOf(plane);
    const fits = Math.min((area.width - 8) / (columns * plane.mm[0]), (area.height - head) / (rows * plane.mm[1]));
    const zoom = fits * view.zoom, width = columns * plane.mm[0] * zoom, height = rows * plane.mm[1] * zoom;
    const x = Math.round(area.x + area.width / 2 - middle * width);
    const y = Math.round(area.y + head + (area.height - head) / 2 - center * height);
    this.compose(place, pane.map);
    pen.save();
    pen.beginPath();
    pen.rect(area.x, area.y + head, area.width, area.height - head);
    pen.clip();
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.buffer, 0, 0, columns, rows, x, y, width, height);
    if (view.mask && view.maskOpacity > 0) this.outline(pen, place, x, y, width / columns, height / rows);
    pen.restore();
    const text = (words, at, top, align, color = "#c9d4df", size = 13) => {
      pen.font = `${size * ratio}px ${FONT}`;
      pen.textAlign = align;
      pen.textBaseline = "middle";
      pen.fillStyle = color;
      pen.fillText(words, at, top);
    };
    const title = plane.name === "picture" ? pane.title : `${pane.title}, ${number + 1} of ${plane.count}`;
    pen.save();
    pen.beginPath();
    pen.rect(area.x, area.y, area.width, head);
    pen.clip();
    text(title, area.x + 8 * ratio, area.y + head / 2, "left", "#8fa3b5", 12);
    pen.restore();
    if (plane.letters) {
      const left = Math.max(x, area.x), right = Math.min(x + width, area.x + area.width);
      const top = Math.max(y, area.y + head), bottom = Math.min(y + height, area.y + area.height);
      pen.shadowColor = "#000";
      pen.shadowBlur = 3 * ratio;
      text(plane.letters.left, left + 6 * ratio, (top + bottom) / 2, "left");
      text(plane.letters.right, right - 6 * ratio, (top + bottom) / 2, "right");
      text(plane.letters.top, (left + right) / 2, top + 10 * ratio, "center");
      text(plane.letters.bottom, (left + right) / 2, bottom - 10 * ratio, "center");
      this.scaleBar(pen, left, bottom, (right - left) / zoom > 80 ? 5 : 1, zoom, text);
      pen.shadowBlur = 0;
    }
    return {plane, x, y, width, height, place, area};
  }

  // The point of a plane in the middle of its pane, as shares of its sides; no further out than its edge.
  centerOf(plane) {
    const half = 0.5 / this.view.zoom;
    return (this.view.center[plane.name] ?? [0.5, 0.5]).map(at => Math.max(half, Math.min(1 - half, at)));
  }

  // Nearer or further by a factor; what lies under the point of a pane stays there.
  zoomBy(factor, pane = this.panes[0], at = null) {
    const {view} = this, before = view.zoom, {area, x, y, width, height, plane} = pane;
    const [midX, midY] = [area.x + area.width / 2, area.y + HEAD * this.ratio + (area.height - HEAD * this.ratio) / 2];
    const [toX, toY] = at ?? [midX, midY];
    view.zoom = Math.max(1, Math.min(LARGEST, before * factor));
    if (Math.abs(view.zoom - 1) < 1e-6) return this.whole();
    const grown = view.zoom / before, shareX = (toX - x) / width, shareY = (toY - y) / height;
    view.center[plane.name] = [shareX - (toX - midX) / (width * grown), shareY - (toY - midY) / (height * grown)];
    view.center[plane.name] = this.centerOf(plane);
    this.changed();
  }

  whole() {
    Object.assign(this.view, {zoom: 1, center: {}});
    this.changed();
  }

  // By pixels of the canvas.
  pan(pane, dx, dy, from = this.centerOf(pane.plane)) {
    this.view.center[pane.plane.name] = [from[0] - dx / pane.width, from[1] - dy / pane.height];
    this.view.center[pane.plane.name] = this.centerOf(pane.plane);
    this.changed();
  }

  scaleBar(pen, x, bottom, centimeters, zoom, text) {
    const length = 10 * centimeters * zoom, {ratio} = this;
    pen.fillStyle = "#c9d4df";
    pen.fillRect(x + 8 * ratio, bottom - 8 * ratio, length, 2 * ratio);
    text(`${centimeters} cm`, x + 8 * ratio, bottom - 18 * ratio, "left", "#c9d4df", 11);
  }

  // Gray values in the window; where a map speaks, its color by as much as it says. Elsewhere the gray stays as it is.
  compose({start, right, down, columns, rows}, map) {
    const {scan, view, buffer} = this;
    buffer.width = columns;
    buffer.height = rows;
    const pen = buffer.getContext("2d", {willReadFrequently: true}), picture = pen.createImageData(columns, rows);
    const out = picture.data, gray = scan.image.data, {low, high} = view.window, scale = 255 / (high - low);
    const heat = map && view.map && view.mapOpacity > 0 ? map.data : null;
    const {threshold, mapOpacity} = view, {colors} = this;
    let to = 0;
    for (let row = 0; row < rows; row++) {
      for (let column = 0, at = start + row * down; column < columns; column++, at += right, to += 4) {
        let red = (gray[at] - low) * scale;
        red = red < 0 ? 0 : red > 255 ? 255 : red;
        let green = red, blue = red;
        const value = heat ? heat[at] : 0;
        if (value > 0 && value >= threshold) {
          const alpha = mapOpacity * Math.min(1, value), color = colors[Math.round(255 * Math.min(1, value))];
          red += alpha * (color[0] - red);
          green += alpha * (color[1] - green);
          blue += alpha * (color[2] - blue);
        }
        out[to] = red;
        out[to + 1] = green;
        out[to + 2] = blue;
        out[to + 3] = 255;
      }
    }
    pen.putImageData(picture, 0, 0);
  }

  outline(pen, {start, right, down, columns, rows}, x, y, wide, high) {
    const {data} = this.scan.mask;
    const inside = (column, row) =>
      column >= 0 && row >= 0 && column < columns && row < rows && data[start + row * down + column * right] > 0;
    pen.beginPath();
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        if (!inside(column, row)) continue;
        const [left, top] = [x + column * wide, y + row * high], [end, bottom] = [left + wide, top + high];
        if (!inside(column - 1, row)) pen.moveTo(left, top), pen.lineTo(left, bottom);
        if (!inside(column + 1, row)) pen.moveTo(end, top), pen.lineTo(end, bottom);
        if (!inside(column, row - 1)) pen.moveTo(left, top), pen.lineTo(end, top);
        if (!inside(column, row + 1)) pen.moveTo(left, bottom), pen.lineTo(end, bottom);
      }
    }
    pen.strokeStyle = `rgb(${this.maskColor.join(" ")})`;
    pen.globalAlpha = this.view.maskOpacity;
    pen.lineWidth = 1.5 * this.ratio;
    pen.stroke();
    pen.globalAlpha = 1;
  }

  drawLegend(pen, top, wide) {
    const {ratio, view, scan, small} = this;
    const left = 12 * ratio, bar = Math.min(180 * ratio, wide / 3), y = top + 9 * ratio;
    pen.textBaseline = "middle";
    pen.font = `${11 * ratio}px ${FONT}`;
    pen.textAlign = "left";
    let next = left;
    const map = scan.maps[0];
    if (map && view.map) {
      for (let i = 0; i < bar; i++) {
        const value = i / bar, [red, green, blue] = this.colors[Math.round(255 * value)];
        const shown = value >= view.threshold ? view.mapOpacity * value : 0, under = 70;
        const mixed = [red, green, blue].map(part => Math.round(under + shown * (part - under)));
        pen.fillStyle = `rgb(${mixed.join(" ")})`;
        pen.fillRect(left + i, y, 1, 10 * ratio);
      }
      pen.fillStyle = "#c9d4df";
      for (const [value, align] of [[0, "left"], [0.5, "center"], [1, "right"]]) {
        pen.textAlign = align;
        pen.fillText(String(value), left + bar * value, y + 20 * ratio);
      }
      pen.textAlign = "left";
      next = left + bar + 10 * ratio;
      const words = scan.maps.every(one => one.method === "evidence")
        ? ["evidence for a tumor", "0.9: odds of 19 to 1"]
        : scan.maps.every(one => one.method !== "evidence") ? ["share of the largest value", "no unit"] : ["evidence, or share of", "the largest value"];
      words.forEach((line, i) => pen.fillText(line, next, y + (5 + 15 * i) * ratio));
      next += Math.max(...words.map(line => pen.measureText(line).width)) + 16 * ratio;
    }
    if (view.mask && scan.masked && !small) {
      pen.strokeStyle = `rgb(${this.maskColor.join(" ")})`;
      pen.lineWidth = 1.5 * ratio;
      pen.strokeRect(next, y, 14 * ratio, 10 * ratio);
      pen.fillStyle = "#c9d4df";
      pen.fillText("outline of the mask", next + 20 * ratio, y + 5 * ratio);
    }
    const {low, high} = view.window;
    pen.fillStyle = "#c9d4df";
    pen.textAlign = "right";
    const lines = [`width ${number(high - low)}, level ${number((high + low) / 2)}`, "gray values, no unit"];
    if (small) pen.fillText(lines.join(", "), wide - 12 * ratio, y + 42 * ratio);
    else lines.forEach((line, i) => pen.fillText(line, wide - 12 * ratio, y + (5 + 15 * i) * ratio));
  }

  inWords() {
    const {view} = this, first = this.panes[0];
    const where = first.plane.name === "picture" ? "Picture" : `${first.plane.name} slice ${view.at[first.plane.name] + 1} of ${first.plane.count}`;
    const over = [view.zoom > 1 && `${view.zoom.toFixed(1)} times as large`, view.mask && this.scan.masked && "outline of the mask", view.map && this.scan.maps.length && this.scan.maps.map(map => map.title).join(" and ")];
    return [where, ...over.filter(Boolean)].join(", ");
  }

  pane(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * this.ratio, y = (event.clientY - box.top) * this.ratio;
    const pane = this.panes.find(({area}) => x >= area.x && x < area.x + area.width && y >= area.y && y < area.y + area.height);
    if (!pane) return null;
    const column = Math.floor(((x - pane.x) / pane.width) * pane.place.columns);
    const row = Math.floor(((y - pane.y) / pane.height) * pane.place.rows);
    const below = y >= pane.area.y + HEAD * this.ratio;
    const inside = below && column >= 0 && row >= 0 && column < pane.place.columns && row < pane.place.rows;
    return {...pane, at: [x, y], column, row, inside, index: pane.place.start + row * pane.place.down + column * pane.place.right};
  }

  step(plane, by) {
    const {at} = this.view, next = Math.max(0, Math.min(plane.count - 1, at[plane.name] + by));
    if (next === at[plane.name]) return;
    at[plane.name] = next;
    this.changed();
  }

  listen() {
    const {canvas} = this;
    let held = null;
    canvas.addEventListener("wheel", event => {
      const pane = this.scan && this.pane(event);
      if (!pane) return;
      if (event.ctrlKey || event.metaKey) {  // two fingers on a touch pad arrive as this too
        event.preventDefault();
        return this.zoomBy(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 150), pane, pane.at);
      }
      if (pane.plane.count < 2) return;
      event.preventDefault();
      this.step(pane.plane, Math.sign(event.deltaY));
    }, {passive: false});
    canvas.addEventListener("pointerdown", event => {
      const pane = this.scan && this.pane(event);
      if (!pane || event.button > 2) return;
      const fingers = event.pointerType === "touch" && pane.plane.count < 2;
      const pans = this.view.zoom > 1 && (event.shiftKey || event.button === 1 || fingers);
      if (event.button === 1) event.preventDefault();
      held = {x: event.clientX, y: event.clientY, window: {...this.view.window}, pane, at: this.view.at[pane.plane.name], moved: false,
        pans, center: this.centerOf(pane.plane)};
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", event => {
      if (!this.scan) return;
      if (!held) return this.changed({under: this.pane(event)});
      const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
      if (!held.moved && Math.hypot(dx, dy) < 4) return;
      held.moved = true;
      if (held.pans) {
        return this.pan(held.pane, dx * this.ratio, dy * this.ratio, held.center);
      }
      if (event.pointerType === "touch") {
        const {plane} = held.pane;
        this.view.at[plane.name] = Math.max(0, Math.min(plane.count - 1, held.at + Math.round(dx / 6)));
      } else {
        const span = held.window.high - held.window.low, middle = (held.window.high + held.window.low) / 2;
        const width = span * Math.exp(dx / 150), level = middle + (span * dy) / 300;
        Object.assign(this.view.window, {low: level - width / 2, high: level + width / 2, name: "by hand"});
      }
      this.changed();
    });
    const release = event => {
      if (held && !held.moved && event.type === "pointerup") this.point(this.pane(event));
      held = null;
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => this.changed({under: null}));
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.scan && this.changed({resetWindow: true}));
    canvas.addEventListener("keydown", event => {
      if (!this.scan) return;
      const plane = this.panes[0].plane, step = 40 * this.ratio;
      const closer = {"+": 1.25, "=": 1.25, "-": 0.8, "0": 0}[event.key];
      if (closer !== undefined && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        return closer ? this.zoomBy(closer) : this.whole();
      }
      const away = {ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [1, 0], ArrowRight: [-1, 0]}[event.key];
      if (event.shiftKey && away) {
        event.preventDefault();
        return this.pan(this.panes[0], away[0] * step, away[1] * step);
      }
      const by = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -plane.count, End: plane.count}[event.key];
      if (by === undefined || plane.count < 2) return;
      event.preventDefault();
      this.step(plane, by);
    });
  }

  // A click in one of three planes moves the others there; elsewhere it changes nothing.
  point(pane) {
    if (!pane || !pane.inside || this.view.layout !== "three" || this.scan.picture) return;
    const {shape} = this.scan.image;
    const voxel = [pane.index % shape[0], Math.floor(pane.index / shape[0]) % shape[1], Math.floor(pane.index / (shape[0] * shape[1]))];
    for (const plane of Object.values(this.planes)) {
      if (plane.name !== pane.plane.name) this.view.at[plane.name] = plane.ns > 0 ? voxel[plane.n] : plane.count - 1 - voxel[plane.n];
    }
    this.changed();
  }

  // The canvas as it is on the screen.
  png() {
    return new Promise(done => this.canvas.toBlob(done, "image/png"));
  }
}

export function number(value) {
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 1 ? value.toFixed(1) : value.toPrecision(2);
}
