// Planes of a volume as they are read: right of the patient on the left, front or top upward; a picture as it is.

const LETTERS = [["R", "L"], ["A", "P"], ["S", "I"]];
const ORDERS = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
const TILTED = 0.34; // the sine of 20 degrees: from there on a second letter says which way

export function planesOf({shape, affine, picture, located}) {
  if (picture) {
    return {picture: {name: "picture", h: 0, hs: 1, v: 1, vs: 1, n: 2, ns: 1, count: 1, mm: [1, 1], letters: null}};
  }
  const columns = [0, 1, 2].map(axis => [0, 1, 2].map(world => affine[world][axis]));
  const sizes = columns.map(column => Math.hypot(...column));
  const unit = columns.map((column, axis) => column.map(value => value / sizes[axis]));
  const fit = order => order.reduce((sum, axis, world) => sum + Math.abs(unit[axis][world]), 0);
  const axes = ORDERS.reduce((best, order) => (fit(order) > fit(best) + 1e-9 ? order : best));
  const signs = axes.map((axis, world) => Math.sign(unit[axis][world]) || 1);
  const plane = (name, across, side, up, towards) => {
    const [h, v, n] = [axes[side], axes[up], axes[across]];
    const [hs, vs] = [-signs[side], -signs[up]];
    const letters = located && {
      right: letter(unit[h], hs), left: letter(unit[h], -hs), bottom: letter(unit[v], vs), top: letter(unit[v], -vs),
    };
    return {name, h, hs, v, vs, n, ns: signs[across] * towards, count: shape[n], mm: [sizes[h], sizes[v]], letters};
  };
  // Slices are counted as the service counts them: toward the left, the back, the top.
  return {
    axial: plane("axial", 2, 0, 1, 1),
    coronal: plane("coronal", 1, 0, 2, -1),
    sagittal: plane("sagittal", 0, 1, 2, -1),
  };
}

function letter(direction, sign) {
  const sorted = direction.map((value, world) => [Math.abs(value), LETTERS[world][value * sign > 0 ? 0 : 1]]);
  sorted.sort((a, b) => b[0] - a[0]);
  return sorted[0][1] + (sorted[1][0] >= TILTED ? sorted[1][1] : "");
}

// Offsets into the data of a slice: start, step to the right, step downward, columns, rows.
export function walk(shape, plane, number) {
  const strides = [1, shape[0], shape[0] * shape[1]];
  const from = (axis, sign) => (sign > 0 ? 0 : shape[axis] - 1) * strides[axis];
  const index = plane.ns > 0 ? number : plane.count - 1 - number;
  return {
    start: index * strides[plane.n] + from(plane.h, plane.hs) + from(plane.v, plane.vs),
    right: plane.hs * strides[plane.h], down: plane.vs * strides[plane.v],
    columns: shape[plane.h], rows: shape[plane.v],
  };
}

// Of every slice: the largest value and the sum.
export function perSlice(shape, data, plane) {
  const most = new Float32Array(plane.count), sums = new Float64Array(plane.count);
  for (let number = 0; number < plane.count; number++) {
    const {start, right, down, columns, rows} = walk(shape, plane, number);
    let top = 0, sum = 0;
    for (let row = 0; row < rows; row++) {
      for (let column = 0, at = start + row * down; column < columns; column++, at += right) {
        const value = data[at];
        sum += value;
        if (value > top) top = value;
      }
    }
    most[number] = top;
    sums[number] = sum;
  }
  return {most, sums};
}

export const largest = values => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
