// Whether a device reads long prompts as it reads short ones. By onnxruntime-web 1.31.0-dev.20260914 a
// software WebGPU adapter (SwiftShader) does not from 32 tokens on, and writes nonsense without an error.
const [LONG, SHORT] = [48, 16];
const MOST = 0.03; // of the largest logit: SwiftShader is off by 0.10 and more of it, and by 0 where it is right

/** Throws where what stands behind a token changes what the model makes of it. */
export async function checkPrompts(model, Tensor) {
  const [long, short] = [await lastOf(model, Tensor, LONG), await lastOf(model, Tensor, SHORT)];
  const off = Math.max(...short.map((value, i) => Math.abs(value - long[i])));
  if (!(off <= MOST * Math.max(...short.map(Math.abs)))) { // so that NaN fails, too
    throw new Error('this device computes long prompts wrongly; choose WebAssembly');
  }
}

async function lastOf(model, Tensor, length) {
  const ids = BigInt64Array.from({ length }, (_, i) => BigInt(8 + i)); // any tokens will do
  const { logits } = await model({
    input_ids: new Tensor('int64', ids, [1, length]),
    attention_mask: new Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]),
  });
  return logits.tolist()[0][SHORT - 1];
}
