// The log-probabilities of llama.cpp (node-llama-cpp) for teacher-forced token ids, of one GGUF file after the other.
//
//     node llamacpp_logprobs.mjs '{"root": FOLDER WITH node_modules, "files": [...], "ids": [...]}'
//
// The last line of stdout is a JSON object: by file, a list of positions, each an object of all tokens' values.
import path from "node:path";
import {pathToFileURL} from "node:url";

const {root, files, ids} = JSON.parse(process.argv[2]);
const entry = path.join(root, "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama} = await import(pathToFileURL(entry));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logger: (level, text) => console.error(level, text)});
const wanted = {generateNext: {probabilities: true, options: {temperature: 0}}};
const found = {};
for (const file of files) {
    const model = await llama.loadModel({modelPath: file, checkTensors: true, gpuLayers: 0});
    const context = await model.createContext({contextSize: 256, threads: 2});
    const results = await context.getSequence().controlledEvaluate(ids.map((id) => [id, wanted]));
    found[file] = results.map(({next}) => Object.fromEntries([...next.probabilities].map(([token, p]) => [token, Math.log(p)])));
    await context.dispose();
    await model.dispose();
}
await llama.dispose();
process.stdout.write("\n" + JSON.stringify(found) + "\n", () => process.exit(0));
