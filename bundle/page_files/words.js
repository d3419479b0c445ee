// Names, numbers and files that the page gives.

export const percent = value => (value > 0.9995 ? "> 99.9 %" : value < 0.0005 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`);
export const stem = name => name.replace(/(\.nii)?\.[^.]+$/i, "") || name;
export const short = name => stem(name).replaceAll("_", " ");
export const verdictClass = verdict => ({tumor: "tumor", "no tumor": "free"})[verdict] ?? "doubt";

// Volume of a number of voxels; null where the file does not say how large they are.
export function milliliters(item, voxels) {
  const {picture, located, affine: a} = item.located;
  if (picture || !located) return null;
  const size = a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) + a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
  return (voxels * Math.abs(size)) / 1000;
}

export function csvOf(items) {
  const head = ["file", "verdict", "answer", "class", "tumor_probability", "probability_std", "threshold", "mask_ml", "mask_voxels", "flags", "seconds", "error"];
  const rows = items.map(item => {
    const result = item.answer?.result;
    return [
      item.name, result?.verdict ?? (item.state === "refused" ? "cannot be read" : item.state), item.answer?.words, result?.predicted_class,
      result?.tumor_probability, result?.probability_std, result?.threshold, item.milliliters, result?.tumor_voxels,
      result?.flags.map(flag => flag.code).join(" "), item.seconds?.toFixed(2), item.error,
    ];
  });
  return [head, ...rows].map(row => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

// A spreadsheet would take what begins so as a formula.
function cell(value) {
  const text = String(value ?? "");
  const safe = /^[=+@\t\r]|^-(?!\d)/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// All that was said of an image, as JSON.
export function resultOf(item, model) {
  const maps = item.maps.map(({method, layer, target, message}) => ({method, layer, target, message}));
  const painted = Object.entries(item.painted).map(([name, {result, changed, left, infill}]) => [name, {result, changed, left, infill}]);
  return JSON.stringify({...item.answer.result, model, maps, painted: Object.fromEntries(painted)}, null, 2);
}

export function save(blob, name) {
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// A mask or map as a file: NIfTI of a volume as it came, PNG of a picture (1 is white).
export async function saved(item, {shape, data, file}, what) {
  if (!item.answer.picture) return [new Blob([file]), `${stem(item.name)}_${what}.nii`];
  const canvas = Object.assign(document.createElement("canvas"), {width: shape[0], height: shape[1]});
  const pen = canvas.getContext("2d"), picture = pen.createImageData(shape[0], shape[1]);
  data.forEach((value, i) => picture.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  pen.putImageData(picture, 0, 0);
  return [await new Promise(done => canvas.toBlob(done, "image/png")), `${stem(item.name)}_${what}.png`];
}
