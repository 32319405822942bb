// The server's side of `kubectl port-forward`: SPDY/3.1 over an upgraded HTTP connection, as much of it as the client
// sends. For each connection that kubectl takes it opens two streams, an `error` one and a `data` one, whose header
// `port` says where to.
//   control frame: 1 bit 1 | 15 bits version | 16 bits type | 8 bits flags | 24 bits length | body
//   data frame:    1 bit 0 | 31 bits stream  |                8 bits flags | 24 bits length | bytes
// Headers are compressed by one zlib stream a direction, with a dictionary that the protocol fixes.
import zlib from 'node:zlib';

const kSynStream = 1;
const kSynReply = 2;
const kRstStream = 3;
const kPing = 6;
const kLast = 1;  // the flag of a stream's last frame

function controlFrame(type, flags, body) {
  const head = Buffer.alloc(8);
  head.writeUInt16BE(0x8003, 0);
  head.writeUInt16BE(type, 2);
  head.writeUInt32BE(flags * 2 ** 24 + body.length, 4);
  return Buffer.concat([head, body]);
}

function number(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

// What a zlib stream makes of one piece.
function through(stream, piece) {
  return new Promise((resolve, reject) => {
    stream.once('error', reject);
    stream.write(piece, () => {
      stream.off('error', reject);
      resolve(stream.read() ?? Buffer.alloc(0));
    });
  });
}

function headersOf(block) {
  const headers = {};
  let at = 4;
  const text = () => {
    const size = block.readUInt32BE(at);
    at += 4 + size;
    return block.toString('utf8', at - size, at);
  };
  for (let left = block.readUInt32BE(0); left > 0; --left) {
    const name = text();
    headers[name] = text();
  }
  return headers;
}

// Serves an upgraded `socket`, whose first bytes may have come with the request. `connect` gives for a port something
// that leads there, as a net.Socket does.
export function serveForward(socket, first, dictionary, connect) {
  const inflate = zlib.createInflate({dictionary, finishFlush: zlib.constants.Z_SYNC_FLUSH});
  const deflate = zlib.createDeflate({flush: zlib.constants.Z_SYNC_FLUSH});
  const open = new Map();         // by the data stream: what leads to the port
  const errorStream = new Map();  // by kubectl's number of the connection

  const send = (frame, done) => socket.destroyed ? done?.() : socket.write(frame, () => done?.());
  const sendData = (stream, bytes, last, done) =>
      send(Buffer.concat([number(stream), number((last ? kLast : 0) * 2 ** 24 + bytes.length), bytes]), done);

  async function opened(stream, headers) {
    send(controlFrame(kSynReply, 0, Buffer.concat([number(stream), await through(deflate, number(0))])));
    const connection = headers.requestid;
    if (headers.streamtype === 'error') {
      errorStream.set(connection, stream);
      return;
    }
    const there = await connect(Number(headers.port));
    open.set(stream, there);
    there.on('error', () => {});  // the pod hung up
    there.on('data', (bytes) => {
      there.pause();
      sendData(stream, bytes, false, () => there.resume());
    });
    let finished = false;
    const finish = () => {
      if (finished) return;
      finished = true;
      sendData(stream, Buffer.alloc(0), true);
      sendData(errorStream.get(connection), Buffer.alloc(0), true);
    };
    there.on('end', finish).on('close', () => {
      finish();
      open.delete(stream);
    });
  }

  async function take(frame) {
    const flags = frame[4];
    const body = frame.subarray(8);
    if (frame[0] < 0x80) {
      const there = open.get(frame.readUInt32BE(0));
      if (body.length > 0) there?.write(body);
      if (flags & kLast) there?.end();
      return;
    }
    const type = frame.readUInt16BE(2);
    if (type === kSynStream) {
      await opened(body.readUInt32BE(0) & 0x7fffffff, headersOf(await through(inflate, body.subarray(10))));
    } else if (type === kPing) {
      send(frame);
    } else if (type === kRstStream) {
      open.get(body.readUInt32BE(0))?.destroy();
    }
  }

  let rest = first;
  let turn = Promise.resolve();
  const receive = (bytes) => {
    rest = Buffer.concat([rest, bytes]);
    while (rest.length >= 8 && rest.length >= 8 + rest.readUIntBE(5, 3)) {
      const frame = rest.subarray(0, 8 + rest.readUIntBE(5, 3));
      rest = rest.subarray(frame.length);
      turn = turn.then(() => take(frame)).catch((error) => socket.destroy(error));
    }
  };
  socket.on('data', receive);
  socket.on('error', () => {});
  socket.on('close', () => {
    for (const there of open.values()) there.destroy();
  });
  receive(Buffer.alloc(0));
}
