// http2.js: a server of HTTP/2 that misbehaves.
//
//	node http2.js [CERT KEY]
//
// Prints "listening PORT".  With a certificate it speaks TLS, else it expects
// HTTP/2 at once ("prior knowledge").  /_mode/NAME chooses how deliveries are
// answered from then on, /_state tells what came: {sessions, streams,
// acknowledged: [BODY], order: [BODY]}; "acknowledged" are those that got their
// whole answer, "order" is all that came, in order.

'use strict';

const http2 = require('node:http2');
const fs = require('node:fs');
const { constants } = http2;

let mode = 'ok';
const state = { sessions: 0, streams: 0, misbehaved: 0, acknowledged: [], order: [] };

function acknowledge(stream, body)
{
	stream.respond({ ':status': 200, 'content-type': 'text/plain' });
	stream.end('ok', () => state.acknowledged.push(body));
}

// Each third request is treated badly, so that the others tell what it costs.
const isVictim = () => state.streams % 3 === 0;

const modes = {
	ok: acknowledge,
	// goes away in mid-flight: streams that are open end, new ones are not taken
	goaway(stream, body)
	{
		if (isVictim())
		{
			state.misbehaved++;
			stream.session.goaway(constants.NGHTTP2_NO_ERROR, stream.id);
		}
		setTimeout(() => !stream.destroyed && acknowledge(stream, body), Math.random() * 5);
	},
	// the same, but says that this very stream was not looked at
	unprocessed(stream, body)
	{
		if (!isVictim())
			return acknowledge(stream, body);
		state.misbehaved++;
		stream.session.goaway(constants.NGHTTP2_NO_ERROR, Math.max(stream.id - 2, 0));
		return setTimeout(() => stream.session && stream.session.destroy(), 5);
	},
	calm(stream, body)
	{
		if (!isVictim())
			return acknowledge(stream, body);
		state.misbehaved++;
		stream.session.goaway(constants.NGHTTP2_ENHANCE_YOUR_CALM, stream.id);
		return setTimeout(() => stream.session && stream.session.destroy(), 5);
	},
	refuse: (stream, body) => reset(stream, body, constants.NGHTTP2_REFUSED_STREAM),
	cancel: (stream, body) => reset(stream, body, constants.NGHTTP2_CANCEL),
	internal: (stream, body) => reset(stream, body, constants.NGHTTP2_INTERNAL_ERROR),
	// says 200, and fails before the answer's body is complete
	half(stream, body)
	{
		if (!isVictim())
			return acknowledge(stream, body);
		state.misbehaved++;
		stream.respond({ ':status': 200, 'content-length': '1000' });
		stream.write('half');
		return setTimeout(() => !stream.destroyed && stream.close(constants.NGHTTP2_INTERNAL_ERROR), 5);
	},
	// never answers some
	drop(stream, body)
	{
		if (!isVictim())
			return acknowledge(stream, body);
		state.misbehaved++;
		return undefined;
	},
};

function reset(stream, body, code)
{
	if (!isVictim())
		return acknowledge(stream, body);
	state.misbehaved++;
	return stream.close(code);
}

const [cert, key] = process.argv.slice(2);
const server = cert
	? http2.createSecureServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) })
	: http2.createServer();
server.on('session', (session) =>
{
	state.sessions++;
	session.on('error', () => {});
});
server.on('stream', (stream, headers) =>
{
	const chunks = [];
	stream.on('error', () => {});
	stream.on('data', (chunk) => chunks.push(chunk));
	stream.on('end', () =>
	{
		const path = headers[':path'];
		if (path.startsWith('/_mode/'))
		{
			mode = path.slice(7);
			state.misbehaved = 0;
			state.acknowledged = [];
			state.order = [];
		}
		if (path.startsWith('/_'))
		{
			stream.respond({ ':status': 200 });
			return stream.end(JSON.stringify(state));
		}
		const body = Buffer.concat(chunks).toString();
		state.streams++;
		state.order.push(body);
		// of a session that was torn down meanwhile
		if (stream.destroyed || !stream.session)
			return undefined;
		return modes[mode](stream, body);
	});
});
server.on('error', () => {});
server.on('sessionError', () => {});
server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
