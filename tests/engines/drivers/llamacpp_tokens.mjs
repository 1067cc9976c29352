// What llama.cpp (node-llama-cpp) makes of texts with the tokenizer of a GGUF file.
//
//     node llamacpp_tokens.mjs '{"root": FOLDER WITH node_modules, "file": ..., "texts": FILE, "chat": [...]}'
//
// The last line of stdout is a JSON object: `plain`, a list of ids by text; `chat`, the ids of the conversation by the
// template of the file, rendered by the template engine of node-llama-cpp; `bos`, whether a text begins with a token.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const {root, file, texts, chat} = JSON.parse(process.argv[2]);
const modules = path.join(root, "node_modules");
const {getLlama} = await import(pathToFileURL(path.join(modules, "node-llama-cpp", "dist", "index.js")));
const {Template} = await import(pathToFileURL(path.join(modules, "@huggingface", "jinja", "dist", "index.js")));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logger: (level, text) => console.error(level, text)});
const model = await llama.loadModel({modelPath: file, gpuLayers: 0});
const ids = (text) => [...model.tokenize(text, true)];
const {tokenizer} = model.fileInfo.metadata;
const pieces = tokenizer.ggml;
const found = {plain: JSON.parse(fs.readFileSync(texts)).map(ids), bos: model.tokens.shouldPrependBosToken, chat: null};
if (tokenizer.chat_template) {
    const words = {messages: chat, add_generation_prompt: true};
    for (const name of ["bos", "eos"])
        words[`${name}_token`] = pieces.tokens?.[pieces[`${name}_token_id`]] ?? model.tokens[`${name}String`] ?? "";
    found.chat = ids(new Template(tokenizer.chat_template).render(words));
}
await model.dispose();
await llama.dispose();
process.stdout.write("\n" + JSON.stringify(found) + "\n", () => process.exit(0));
