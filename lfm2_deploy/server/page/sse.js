// Server-sent events of a fetch response: bytes in, the `data` of each event out.

/**
 * @param {ReadableStream<Uint8Array>} body
 * @yields {string} the data of one event; comments and other fields are skipped.
 */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // A "\r" at the very end may be half of "\r\n".
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // tells the server that nobody reads any more
  }
}
