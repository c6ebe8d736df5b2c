// Decodes Opus with LACE or NoLACE: a line of JSON in, a line of JSON out, until standard input ends.
// In: {"enhancement": "lace" or "nolace", "packets": [base64, ...]}. Out: float32 samples, base64.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

// Unlike `import`, this finds the package in $NODE_PATH and in the folders above the current one.
const path = createRequire(`${process.cwd()}/`).resolve("@wasm-audio-decoders/opus-ml");
const { OpusMLDecoder } = await import(pathToFileURL(path));

for await (const line of createInterface({ input: process.stdin })) {
  const { enhancement, packets } = JSON.parse(line);
  const decoder = new OpusMLDecoder({
    speechQualityEnhancement: enhancement,
    channels: 1,
    sampleRate: 16000,
  });
  await decoder.ready;
  const decoded = decoder.decodeFrames(packets.map((packet) => Buffer.from(packet, "base64")));
  const samples = decoded.channelData[0];
  const bytes = Buffer.from(samples.buffer, samples.byteOffset, samples.byteLength);
  const error = decoded.errors.length ? decoded.errors[0].message : null;
  process.stdout.write(`${JSON.stringify({ error, samples: bytes.toString("base64") })}\n`);
  decoder.free();
}
