// What of an image is looked at, and what is counted and found in its masks and maps.

import {largest, perSlice} from "./geometry.js";
import {milliliters} from "./words.js";

// The slice with the largest area of the mask, else with most evidence, else the most suspicious, else the middle one.
export function bestSlice(item, plane, home) {
  for (const part of [item.answer.files.mask, item.answer.files.evidence, item.answer.files.raw_evidence]) {
    if (!part) continue;
    const {sums} = perSlice(part.shape, part.data, plane);
    const best = largest(sums);
    if (sums[best] > 0) return best;
  }
  const known = item.answer.result.slice_probabilities;
  return known && plane.name === home ? largest(known.map(value => value ?? -1)) : plane.count >> 1;
}

export function count(data, from) {
  let found = 0;
  for (let i = 0; i < data.length; i++) if (data[i] >= from) found++;
  return found;
}

// Voxels of a map from a threshold on; its values are put in order once, so that the slider's volume is there at once.
export function countFrom(map, threshold) {
  if (!map.sorted) {
    map.sorted = map.data.filter(value => value > 0).sort();
  }
  let [low, high] = [0, map.sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (map.sorted[middle] < threshold) low = middle + 1;
    else high = middle;
  }
  return map.sorted.length - low;
}

// The joined mask and evidence, or those of the network alone.
export function useRaw(item, raw) {
  const {files} = item.answer, prefix = raw ? "raw_" : "";
  item.raw = raw;
  item.mask = files[`${prefix}mask`];
  const evidence = files[`${prefix}evidence`];
  const others = item.maps.filter(map => map.method !== "evidence" || map.target !== "tumor");
  const empty = !evidence || evidence.data.every(value => value === 0);
  item.maps = empty ? others : [{title: "evidence", method: "evidence", target: "tumor", layer: "", message: "Evidence on an absolute scale: 0 none, 0.9 calibrated odds of 19 to 1", data: evidence.data, file: evidence.file}, ...others];
  item.slices = {};
}

// As the viewer takes it: the image as it is, or painted over.
export function scan(item) {
  const changed = item.version !== "as it is" && item.painted[item.version], mask = changed ? changed.files.mask : item.mask;
  mask.voxels ??= count(mask.data, 0.5);
  return {
    ...item.located, image: changed ? changed.files.image : item.answer.files.image, mask, masked: mask.voxels > 0,
    maps: changed ? [] : item.maps, title: changed ? item.version : "image",
  };
}

export function volumes(item) {
  const {mask: {voxels}, maps} = scan(item);
  const words = voxel => (item.answer.picture || !item.answer.located ? `${voxel} ${item.answer.picture ? "pixels" : "voxels"}` : `${milliliters(item, voxel).toFixed(2)} ml`);
  const map = maps[0];
  return [map && `${map.title} from ${item.view.threshold.toFixed(2)}: ${words(countFrom(map, item.view.threshold))}`, `mask: ${words(voxels)}`].filter(Boolean).join(" · ");
}
