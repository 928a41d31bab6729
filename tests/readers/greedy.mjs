// What transformers.js answers, greedily; the same code runs in Node and in a browser.

/**
 * @param {object} library the module @huggingface/transformers
 * @param {{folder: string, prompts: number[][], count: number, device?: string}} job
 * @returns {Promise<number[][]>} of each prompt, `count` new token ids; end-of-text is not heeded
 */
export async function generateGreedily({ AutoModelForCausalLM, Tensor }, job) {
  const model = await load(AutoModelForCausalLM, job);
  const answers = [];
  for (const prompt of job.prompts) {
    const shape = [1, prompt.length];
    const made = await model.generate({
      input_ids: new Tensor('int64', BigInt64Array.from(prompt, BigInt), shape),
      attention_mask: new Tensor('int64', new BigInt64Array(prompt.length).fill(1n), shape),
      max_new_tokens: job.count,
      do_sample: false,
      repetition_penalty: 1,
      eos_token_id: null,
    });
    answers.push(made.tolist()[0].slice(prompt.length).map(Number));
  }
  await model.dispose();
  return answers;
}

/** Ids of a rendered chat. */
export async function renderChat({ AutoTokenizer }, { folder, messages }) {
  const tokenizer = await AutoTokenizer.from_pretrained(folder, { local_files_only: true });
  const options = { add_generation_prompt: true, return_tensor: false, return_dict: false };
  return tokenizer.apply_chat_template(messages, options);
}

/** [positions, vocabulary] of a plain call, and the place that is likeliest at each position. */
export async function scoreAll({ AutoModelForCausalLM, Tensor }, { folder, prompt, device }) {
  const model = await load(AutoModelForCausalLM, { folder, device });
  const shape = [1, prompt.length];
  const { logits } = await model({
    input_ids: new Tensor('int64', BigInt64Array.from(prompt, BigInt), shape),
    attention_mask: new Tensor('int64', new BigInt64Array(prompt.length).fill(1n), shape),
  });
  await model.dispose();
  const rows = logits.tolist()[0];
  return { shape: logits.dims, likeliest: rows.map((row) => row.indexOf(Math.max(...row))) };
}

function load(kind, { folder, device }) {
  // One thread: several spin, and on a busy machine that takes many times as long.
  const session_options = { intraOpNumThreads: 1 };
  return kind.from_pretrained(folder, { device, session_options, local_files_only: true });
}

export const CALLS = { generateGreedily, renderChat, scoreAll };
