// ONNX Runtime Web and the two model files -> probabilities. Each is loaded when first needed.

import { Refusal } from "./picture.js";

// Of ONNX Runtime Web, the builds for processors and for graphics cards.
const BUILDS = {
  cpu: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"],
  gpu: ["ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"],
};
export const onGraphicsCard = "gpu" in navigator && "Suspending" in WebAssembly;
// Several threads need memory that they share, which a page has only if its server's headers shut
// other pages out.
export const threads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;

const runtimes = {};
const sessions = {};

/** Probabilities (Float32Array) of a small picture; `kind` is int8, float or gpu. */
export async function predict(facts, kind, bytes) {
  const ort = (runtimes[kind === "gpu"] ??= await openRuntime(facts.runtime, kind === "gpu"));
  const session = (sessions[kind] ??= await openModel(ort, facts.models, kind));
  const [height, width] = facts.size;
  const input = Float32Array.from(bytes, (level) => level / 255);
  const shape = [1, facts.colour ? 3 : 1, height, width];
  const started = performance.now();
  const { logits } = await session.run({ input: new ort.Tensor("float32", input, shape) });
  const milliseconds = performance.now() - started;
  return { probabilities: logits.data.map((one) => 1 / (1 + Math.exp(-one))), milliseconds };
}

async function openRuntime(runtime, gpu) {
  const [script, wasm] = BUILDS[gpu ? "gpu" : "cpu"];
  try {
    // A script has to have an address to be imported: that of its checked content.
    const content = new Blob([await load(runtime, script)], { type: "text/javascript" });
    const ort = await import(URL.createObjectURL(content));
    ort.env.wasm.wasmBinary = await load(runtime, wasm);
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.proxy = !gpu; // in a thread of its own, so that the page goes on answering
    return ort;
  } catch (error) {
    const problem = `${runtime.npm} cannot be loaded from ${new URL(runtime.url, location).host}`;
    throw new Refusal(`${problem} (${error.message}); write the page again, or try later.`);
  }
}

/**
 * A file of ONNX Runtime Web: packed from the page's own folder, where it was checked, else from
 * elsewhere; then an error if its SHA-384 is not the known one.
 */
async function load({ url, files }, name) {
  const own = !url.startsWith("http");
  const { integrity } = files[name];
  const answer = await fetch(url + name + (own ? ".gzip" : ""), { integrity });
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  const unpack = () => answer.body.pipeThrough(new DecompressionStream("gzip"));
  return own ? new Response(unpack()).arrayBuffer() : answer.arrayBuffer();
}

async function openModel(ort, models, kind) {
  const { file } = models[kind === "int8" ? "int8" : "float"];
  try {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(answer.status);
    const executionProviders = [kind === "gpu" ? "webgpu" : "wasm"];
    return await ort.InferenceSession.create(await answer.arrayBuffer(), { executionProviders });
  } catch (error) {
    throw new Refusal(`${file} cannot be used here (${error.message}); write the page again.`);
  }
}
