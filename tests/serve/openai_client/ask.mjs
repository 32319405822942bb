// Asks a server of the model "days" with OpenAI's client, and holds the replies to what the client's users rely on.
//   node ask.mjs URL TOKEN
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [url, token] = process.argv.slice(2);
const client = new OpenAI({baseURL: url, apiKey: token});
const model = 'days';

const models = [];
for await (const entry of client.models.list()) models.push(entry.id);
assert.deepEqual(models, [model]);
assert.equal((await client.models.retrieve(model)).id, model);
await assert.rejects(client.models.retrieve('none'), OpenAI.NotFoundError);

// Completions: samples, stop strings, log-probabilities, the same seed twice.
const asked = {model, prompt: 'Today is', n: 2, seed: 7, max_tokens: 20, stop: ['.', '!'], logprobs: 2};
const completion = await client.completions.create(asked);
assert.equal(completion.choices.length, 2);
for (const choice of completion.choices) {
  assert.ok(!choice.text.includes('.'));
  assert.ok(['stop', 'length'].includes(choice.finish_reason));
  assert.equal(choice.logprobs.tokens.join(''), choice.text);
  assert.equal(choice.logprobs.token_logprobs.length, choice.logprobs.tokens.length);
}
assert.equal(completion.usage.total_tokens, completion.usage.prompt_tokens + completion.usage.completion_tokens);
assert.deepEqual((await client.completions.create(asked)).choices, completion.choices);

// The same as a stream.
const texts = ['', ''];
for await (const part of await client.completions.create({...asked, stream: true})) {
  for (const choice of part.choices) texts[choice.index] += choice.text;
}
assert.deepEqual(texts, completion.choices.map((choice) => choice.text));

// Echoed prompts.
const echoed = await client.completions.create(
    {model, prompt: [[0, 60, 61], [0, 62]], echo: true, logprobs: 1, max_tokens: 1});
assert.equal(echoed.choices.length, 2);
assert.equal(echoed.choices[0].logprobs.token_logprobs.length, 4);
assert.equal(echoed.choices[0].logprobs.token_logprobs[0], null);

// Chats.
const chat = {model, messages: [{role: 'user', content: 'What day is it? \u{1F642}'}], max_completion_tokens: 12, seed: 3};
const answer = await client.chat.completions.create({...chat, logprobs: true, top_logprobs: 2});
assert.equal(answer.choices[0].message.role, 'assistant');
assert.ok(answer.choices[0].logprobs.content.every((token) => token.top_logprobs.length === 2 && token.bytes.length));
let content = '', usage = null, reason = null;
const stream = await client.chat.completions.create({...chat, stream: true, stream_options: {include_usage: true}});
for await (const part of stream) {
  if (part.usage) usage = part.usage;
  content += part.choices[0]?.delta?.content ?? '';
  reason = part.choices[0]?.finish_reason ?? reason;
}
assert.equal(content, answer.choices[0].message.content);
assert.equal(reason, answer.choices[0].finish_reason);
assert.deepEqual(usage, answer.usage);
// The client's own way of putting a stream together.
const whole = await client.chat.completions.stream(chat).finalChatCompletion();
assert.equal(whole.choices[0].message.content, content);

// A stream that is given up.
const given = await client.completions.create({model, prompt: 'Today', n: 50, max_tokens: 60, stream: true});
for await (const part of given) break;

// Embeddings: the client asks for base64 unless told otherwise.
const embeddings = await client.embeddings.create({model, input: ['Today', 'Monday']});
const floats = await client.embeddings.create({model, input: 'Monday', encoding_format: 'float'});
assert.equal(embeddings.data.length, 2);
assert.deepEqual(embeddings.data[1].embedding.map(Math.fround), floats.data[0].embedding.map(Math.fround));

// Errors have their class, code and parameter.
const error = async (promise, type, code, param) => {
  await assert.rejects(promise, (thrown) => {
    assert.ok(thrown instanceof type, thrown.stack);
    assert.equal(thrown.code, code);
    assert.equal(thrown.param, param);
    return true;
  });
};
await error(client.completions.create({model, prompt: 'Today '.repeat(100)}), OpenAI.BadRequestError,
            'context_length_exceeded', 'prompt');
await error(client.completions.create({model, prompt: 'Today', logit_bias: {1: 5}}), OpenAI.BadRequestError,
            'unsupported_parameter', 'logit_bias');
await error(client.completions.create({model: 'none', prompt: 'Today'}), OpenAI.NotFoundError, 'model_not_found', 'model');
await error(new OpenAI({baseURL: url, apiKey: 'wrong'}).models.list(), OpenAI.AuthenticationError, null, null);
console.log('All as expected.');
