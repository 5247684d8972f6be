// What is done with a mask: bytes 0 and 1, row by row; beside it its width.

import { greys, Refusal } from "./picture.js";

const BLUE = [0, 114, 178]; // seen by the colour-blind, too
const TINT = 115; // of 255

/** Carvana's run-length code: pixels count from 1, row by row; "start length start length ...". */
export function runLengths(mask) {
  const code = [];
  for (let at = 0; at < mask.length; at++) {
    if (!mask[at]) continue;
    const start = at;
    while (at < mask.length && mask[at]) at++;
    code.push(start + 1, at - start);
  }
  return code.join(" ");
}

/** Twice what both have, over what each has; 1 if both are empty. */
export function dice(one, other) {
  let [both, sum] = [0, 0];
  for (let i = 0; i < one.length; i++) {
    both += one[i] & other[i];
    sum += one[i] + other[i];
  }
  return sum ? (2 * both) / sum : 1;
}

export function count(mask) {
  return mask.reduce((sum, one) => sum + one, 0);
}

/** A canvas with a mask file on it -> a mask: 0 is background, the one other level the object. */
export function maskOn(canvas, name) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const levels = greys(data);
  const found = new Set(levels);
  if (found.size > 2 || !(found.has(0) || (found.size === 1 && found.has(255)))) {
    const problem = `nothing says which of its ${found.size} grey levels is the object`;
    throw new Refusal(`${name}: ${problem}; save the mask as PNG, black and white.`);
  }
  return Uint8Array.from(levels, (level) => level > 0);
}

/** The object tinted and its outline drawn, on nothing, to lay over the photo. */
export function tinted(mask, width) {
  const height = mask.length / width;
  const line = Math.max(1, Math.round(Math.max(width, height) / 600)); // seen in small views, too
  const picture = new ImageData(width, height);
  for (let y = 0, at = 0; y < height; y++) {
    const [up, down] = [y < line ? 0 : line * width, y >= height - line ? 0 : line * width];
    for (let x = 0; x < width; x++, at++) {
      if (!mask[at]) continue;
      const [left, right] = [x < line ? 0 : line, x >= width - line ? 0 : line];
      const inside = mask[at - up] & mask[at + down] & mask[at - left] & mask[at + right];
      picture.data.set(BLUE, 4 * at);
      picture.data[4 * at + 3] = inside ? TINT : 255;
    }
  }
  return picture;
}

/** White where the object is, else black. */
export function blackAndWhite(mask, width) {
  const picture = new ImageData(width, mask.length / width);
  const pixels = new Uint32Array(picture.data.buffer);
  mask.forEach((one, at) => (pixels[at] = one ? 0xffffffff : 0xff000000));
  return picture;
}

/** The photo, transparent but for the object, whose edge is soft by a pixel. */
export function cutOut(canvas, mask) {
  const { width, height } = canvas;
  const picture = canvas.getContext("2d").getImageData(0, 0, width, height);
  for (let y = 0, at = 0; y < height; y++) {
    const rows = [Math.max(0, y - 1), y, Math.min(height - 1, y + 1)];
    for (let x = 0; x < width; x++, at++) {
      const [left, right] = [Math.max(0, x - 1), Math.min(width - 1, x + 1)];
      let sum = 0;
      for (const row of rows) {
        const start = row * width;
        sum += mask[start + left] + mask[start + x] + mask[start + right];
      }
      picture.data[4 * at + 3] = Math.round((255 * sum) / 9);
    }
  }
  return picture;
}
