// Picture files -> pixels -> the small picture that the network sees; its small map -> a mask.
// The arithmetic is Pillow's, rounding included, so that a mask here is the library's mask.

const LONGEST = 16_384; // pixels a side: no browser draws more on a canvas
const MOST = 50_000_000; // pixels in all: 200 MB, which phones still have
const STRIP = 256; // rows that are read at once
const BITS = 2 ** 22; // Pillow's weights for 8-bit pixels are whole numbers of this fraction

/** A sentence for the reader; any other error is a bug. */
export class Refusal extends Error {}

/** A file -> a canvas of its own size: upright (EXIF), on white where it is transparent. */
export async function readPicture(file) {
  const { naturalWidth: width, naturalHeight: height } = await opened(file);
  const size = `${file.name}: ${width} x ${height} pixels are too large for this page`;
  const limit = `which takes ${LONGEST} a side and ${MOST / 1e6} million in all`;
  if (Math.max(width, height) > LONGEST || width * height > MOST) {
    throw new Refusal(`${size}, ${limit}; make it smaller first.`);
  }
  const bitmap = await decoded(file);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  // A canvas that got no memory says nothing and stays empty.
  if (context.getImageData(0, 0, 1, 1).data[3] !== 255) {
    throw new Refusal(`${size}; make it smaller first.`);
  }
  return canvas;
}

/** An image that knows its size; its pixels are not decoded yet. */
async function opened(file) {
  const image = new Image();
  const address = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = reject;
      image.src = address;
    });
    return image;
  } catch {
    throw unreadable(file);
  } finally {
    URL.revokeObjectURL(address);
  }
}

async function decoded(file) {
  try {
    return await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none", // the levels as they are in the file
      premultiplyAlpha: "none",
    });
  } catch {
    throw unreadable(file);
  }
}

function unreadable(file) {
  const problem = "cannot be read as a picture";
  return new Refusal(`${file.name}: ${problem}; give a JPEG or PNG file that opens elsewhere.`);
}

/** Which pixels make a pixel of the new size, and how much of each: `{first, weights}` for each. */
function shares(from, to, reach, shape) {
  const step = from / to;
  const scale = Math.max(step, 1);
  return Array.from({ length: to }, (_, at) => {
    const centre = (at + 0.5) * step;
    const first = Math.max(0, Math.trunc(centre - reach * scale + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach * scale + 0.5));
    const raw = [];
    for (let x = first; x < last; x++) raw.push(shape((x - centre + 0.5) / scale));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, weights: raw.map((one) => one / sum) };
  });
}

const box = (x) => (x > -0.5 && x <= 0.5 ? 1 : 0);
const triangle = (x) => Math.max(0, 1 - Math.abs(x));

/** The whole-number weights of area averaging. */
function areas(from, to) {
  return shares(from, to, 0.5, box).map(({ first, weights }) => ({
    first,
    weights: weights.map((one) => Math.floor(0.5 + one * BITS)),
  }));
}

/**
 * A canvas -> the network's input by area averaging, first along the rows, then down the columns:
 * bytes, one plane of `height * width` for grey, three (red, green, blue) for colour.
 */
export function shrink(canvas, [height, width], colour) {
  const planes = colour ? 3 : 1;
  const narrow = new Uint8ClampedArray(planes * canvas.height * width);
  const across = areas(canvas.width, width);
  const context = canvas.getContext("2d");
  for (let top = 0; top < canvas.height; top += STRIP) {
    const rows = Math.min(STRIP, canvas.height - top);
    const { data } = context.getImageData(0, top, canvas.width, rows);
    for (let plane = 0; plane < planes; plane++) {
      const levels = colour ? channel(data, plane) : greys(data);
      const start = (plane * canvas.height + top) * width;
      for (let y = 0; y < rows; y++) {
        average(levels, y * canvas.width, 1, across, narrow, start + y * width, 1);
      }
    }
  }
  const small = new Uint8ClampedArray(planes * height * width);
  const down = areas(canvas.height, height);
  for (let plane = 0; plane < planes; plane++) {
    for (let x = 0; x < width; x++) {
      const [from, to] = [plane * canvas.height * width + x, plane * height * width + x];
      average(narrow, from, width, down, small, to, width);
    }
  }
  return small;
}

function average(levels, from, stride, parts, result, to, step) {
  for (const { first, weights } of parts) {
    let sum = BITS / 2; // so that cutting off rounds to the nearest
    for (let k = 0; k < weights.length; k++) {
      sum += weights[k] * levels[from + (first + k) * stride];
    }
    result[to] = Math.floor(sum / BITS);
    to += step;
  }
}

/** Red, green, blue, alpha -> grey, with the weights of Pillow's `convert("L")`. */
export function greys(data) {
  const result = new Uint8ClampedArray(data.length / 4);
  for (let i = 0, at = 0; at < data.length; i++, at += 4) {
    result[i] = (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 0x8000) >> 16;
  }
  return result;
}

function channel(data, plane) {
  const result = new Uint8ClampedArray(data.length / 4);
  for (let i = 0; i < result.length; i++) result[i] = data[4 * i + plane];
  return result;
}

/**
 * Small probabilities -> a mask of another size, bytes 0 and 1: enlarged bilinearly first, cut at
 * the threshold last. Sizes are [height, width].
 */
export function enlargedMask(probabilities, [rows, columns], [height, width], threshold) {
  const wide = new Float32Array(rows * width);
  shares(columns, width, 1, triangle).forEach(({ first, weights }, x) => {
    for (let y = 0; y < rows; y++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) {
        sum += weights[k] * probabilities[y * columns + first + k];
      }
      wide[y * width + x] = sum;
    }
  });
  const limit = Math.fround(threshold);
  const mask = new Uint8Array(height * width);
  const line = new Float64Array(width);
  shares(rows, height, 1, triangle).forEach(({ first, weights }, y) => {
    line.fill(0);
    weights.forEach((weight, k) => {
      const start = (first + k) * width;
      for (let x = 0; x < width; x++) line[x] += weight * wide[start + x];
    });
    for (let x = 0; x < width; x++) mask[y * width + x] = Math.fround(line[x]) > limit;
  });
  return mask;
}
