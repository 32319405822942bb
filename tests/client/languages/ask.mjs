// Uses the jobs API from Node: what reflection tells of it, and a client made of the protos.
//   node ask.mjs HOST:PORT PROTO_ROOT JOB.yaml
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import reflectionClient from 'grpc-js-reflection-client';

const [address, root, jobFile] = process.argv.slice(2);
const insecure = grpc.credentials.createInsecure();

const reflection = new reflectionClient.GrpcReflection(address, insecure);
const services = await reflection.listServices();
for (const service of ['millrace.v1.Jobs', 'millrace.v1.Ratings', 'grpc.health.v1.Health']) {
  assert.ok(services.includes(service), `${service} is not told by reflection: ${services}`);
}
const methods = (await reflection.listMethods('millrace.v1.Jobs')).map(({name}) => name);
assert.ok(methods.includes('SubmitJob') && methods.includes('StartSweep'), `reflection tells only ${methods}`);

const definition = loader.loadSync('proto/millrace/v1/jobs.proto', {includeDirs: [root], keepCase: true, longs: Number, enums: String});
const {Jobs} = grpc.loadPackageDefinition(definition).millrace.v1;
const jobs = new Jobs(address, insecure);
const ask = (method, request) =>
    new Promise((resolve, reject) => jobs[method](request, (error, reply) => error ? reject(error) : resolve(reply)));

const yaml = fs.readFileSync(jobFile, 'utf8');
const job = await ask('SubmitJob', {job_yaml: yaml, base_directory: path.dirname(jobFile), overrides: ['name=node'], labels: {from: 'node'}});
assert.equal(job.id, 'node');
const listed = await ask('ListJobs', {labels: {from: 'node'}});
assert.deepEqual(listed.jobs.map(({id}) => id), ['node']);
await assert.rejects(ask('PauseJob', {job_id: 'none'}), {code: grpc.status.NOT_FOUND});
const sweep = await ask('StartSweep', {
  sweep: {name: 'seeds', parameters: [{field: 'seed', values: ['1', '2', '3']}]},
  job: {job_yaml: yaml, base_directory: path.dirname(jobFile)},
});
assert.deepEqual(sweep.trials.map(({job_id}) => job_id), ['seeds-1', 'seeds-2', 'seeds-3']);
assert.equal((await ask('CancelSweep', {sweep_id: 'seeds'})).state, 'CANCELLED');

await ask('CancelJob', {job_id: 'node'});
const events = [];
await new Promise((resolve, reject) => {
  const stream = jobs.WatchJob({job_id: 'node'});
  stream.on('data', (event) => events.push(event));
  stream.on('end', resolve);
  stream.on('error', reject);
});
assert.equal(events.at(-1).state.state, 'CANCELLED');
console.log('Node is content.');
process.exit(0);
