// hostile.js: a server that misbehaves.
//
//	node hostile.js [CERT KEY]
//
// Prints "listening PORT".  GET /_mode/NAME chooses how deliveries are answered
// from then on; GET /_count tells how many requests came since, and how many
// were acknowledged with their ids.  It speaks on the bare socket, because
// Node's own server would not let it misbehave.

'use strict';

const net = require('node:net');
const tls = require('node:tls');
const fs = require('node:fs');

let mode = 'ok';
let count = 0;
let acknowledged = [];

const ok = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

// Fill the socket until the other side is gone.
function flood(socket, chunk)
{
	const more = () =>
	{
		while (!socket.destroyed && socket.write(chunk));
	};
	socket.on('drain', more);
	more();
}

const nonsense = Buffer.from('\xe9\x8e\xff\xed\xa0\x80\xc0\xaf\xf8\x88\x80\x80\x80\x8e' +
	'\x00\x1b[2J\xc3\xa9\xe6\x97', 'latin1');

function send(socket, status, body)
{
	socket.write(Buffer.from(`HTTP/1.1 ${status}\r\nContent-Length: ${body.length}\r\n\r\n`, 'latin1'));
	socket.write(body);
}

function illegal(socket, status, head)
{
	const [, pair] = /^authorization: Basic (.*)/im.exec(head) || ['', ''];
	send(socket, status, Buffer.concat([Buffer.from('no: '), nonsense, Buffer.from(pair, 'base64'), nonsense]));
}

const modes = {
	ok: (socket) => socket.write(ok),
	silent: () => {},
	reset: (socket) =>
	{
		socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf');
		setTimeout(() => socket.resetAndDestroy(), 5);
	},
	hangup: (socket) => socket.destroy(),
	headers: (socket) =>
	{
		socket.write('HTTP/1.1 200 OK\r\n');
		flood(socket, `X-Endless: ${'x'.repeat(1000)}\r\n`.repeat(20));
	},
	body: (socket) =>
	{
		socket.write(`HTTP/1.1 500 Oops\r\nContent-Length: ${1 << 30}\r\n\r\n`);
		flood(socket, Buffer.alloc(1 << 16, 'x'));
	},
	redirect: (socket) => socket.write(
		'HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n'),
	busy: (socket) => socket.write(
		'HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy'),
	busydate: (socket) => socket.write('HTTP/1.1 503 Unavailable\r\nRetry-After: ' +
		`${new Date(Date.now() + 2000).toUTCString()}\r\nContent-Length: 0\r\n\r\n`),
	// as much as is read, held until the others in flight have as much
	large: (socket) =>
	{
		const size = 1000000;
		socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${size}\r\n\r\n`);
		socket.write(Buffer.alloc(size - 1, 'x'));
		setTimeout(() => socket.write('x'), 300);
	},
	// repeats the address it was sent to, as it came and decoded
	echo: (socket, head) =>
	{
		const path = head.split(' ')[1];
		send(socket, '422 No', Buffer.from(`Cannot POST ${path}, that is ${decodeURIComponent(path)}`));
	},
	error: (socket) => socket.write('HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops'),
	garbage: (socket) => socket.end('SSH-2.0-OpenSSH_9.2\r\n\xff\x00\x1b[2J\r\n'),
	binary: (socket) => socket.write(Buffer.concat([
		Buffer.from('HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\n'),
		Buffer.from([0xff, 0xfe, 0x00, 0x1b, 0x0a, 0x41])])),
	// text that is none: a character of UTF-8, halves of others, surrogates, what
	// is too long for its code, a lead byte of EUC_JP, control characters, and
	// what authorized the request
	illegal: (socket, head) => illegal(socket, '500 Oops', head),
	refusal: (socket, head) => illegal(socket, '422 No \xe9\x8e\xff', head),
	items: (socket) => send(socket, '200 OK', Buffer.concat([
		Buffer.from('{"Failed": [{"Id": "0", "Code": "Bad'), nonsense, Buffer.from('"}]}')])),
	taken: (socket) => send(socket, '200 OK', Buffer.from('{"Failed": []}')),
	// acknowledges, and closes the connection now and then, also while the next
	// request is on its way
	flaky: (socket) =>
	{
		socket.write(ok);
		if (Math.random() < 0.2)
			setTimeout(() => socket.destroy(), Math.random() * 3);
	},
};

const acknowledges = { ok: true, taken: true, flaky: true };

function control(socket, path)
{
	let text = 'ok';
	if (path.startsWith('/_mode/'))
	{
		mode = path.slice(7);
		count = 0;
		acknowledged = [];
	}
	else
		text = JSON.stringify({ count, acknowledged });
	socket.end(`HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`);
}

// One complete request at a time off the front of what has come.
function takeRequest(socket)
{
	const end = socket.unread.indexOf('\r\n\r\n');
	if (end < 0)
		return false;
	const head = socket.unread.subarray(0, end).toString('latin1');
	const length = Number((/^content-length: *(\d+)/im.exec(head) || [0, 0])[1]);
	if (socket.unread.length < end + 4 + length)
		return false;
	const body = socket.unread.subarray(end + 4, end + 4 + length).toString();
	socket.unread = socket.unread.subarray(end + 4 + length);
	const path = head.split(' ')[1];
	if (path.startsWith('/_'))
		control(socket, path);
	else
	{
		count++;
		if (acknowledges[mode])
			acknowledged.push(body);
		modes[mode](socket, head);
	}
	return true;
}

function onConnection(socket)
{
	socket.unread = Buffer.alloc(0);
	socket.on('error', () => {});
	socket.on('data', (chunk) =>
	{
		socket.unread = Buffer.concat([socket.unread, chunk]);
		while (!socket.destroyed && takeRequest(socket));
	});
}

const [cert, key] = process.argv.slice(2);
const server = cert
	? tls.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, onConnection)
	: net.createServer(onConnection);
server.on('tlsClientError', () => {});
server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
