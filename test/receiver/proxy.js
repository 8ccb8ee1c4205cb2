// proxy.js: a forward proxy.
//
//	node proxy.js CONFIG
//
// CONFIG is JSON: {hosts: {NAME: ADDRESS}, user: "user:password"}.  It prints
// "listening PORT", and serves CONNECT and requests with a whole URL.  Names
// are resolved as "hosts" says, since only a proxy knows where they lead.
//
//	GET  /_state	{connects, requests, hosts}: what was asked for
//	POST /_set		behaviour from now on: {status}: what CONNECT is refused with

'use strict';

const http = require('node:http');
const net = require('node:net');

const config = JSON.parse(process.argv[2] || '{}');
const state = { connects: 0, requests: 0, hosts: [] };
let behaviour = {};

const addressOf = (name) => (config.hosts || {})[name] || '127.0.0.1';
const isAllowed = (request) => !config.user || request.headers['proxy-authorization'] ===
	`Basic ${Buffer.from(config.user).toString('base64')}`;

function control(request, response, body)
{
	if (request.url === '/_set')
		behaviour = JSON.parse(body);
	response.end(request.url === '/_state' ? JSON.stringify(state) : 'ok');
}

// A request with a whole URL is sent on as it is.
function forward(request, response, body)
{
	const url = new URL(request.url);
	state.requests++;
	state.hosts.push(url.host);
	const headers = { ...request.headers };
	delete headers['proxy-authorization'];
	const onward = http.request({ host: addressOf(url.hostname), port: url.port, method: request.method,
		path: url.pathname + url.search, headers }, (answer) =>
	{
		response.writeHead(answer.statusCode, answer.headers);
		answer.pipe(response);
	});
	onward.on('error', () => response.writeHead(502).end());
	onward.end(body);
}

const server = http.createServer((request, response) =>
{
	const chunks = [];
	request.on('data', (chunk) => chunks.push(chunk));
	request.on('end', () =>
	{
		const body = Buffer.concat(chunks);
		if (request.url.startsWith('/_'))
			return control(request, response, body.toString());
		if (!isAllowed(request))
			return response.writeHead(407, { 'Proxy-Authenticate': 'Basic realm="proxy"' }).end();
		return forward(request, response, body);
	});
});

server.on('connect', (request, socket, head) =>
{
	const [host, port] = request.url.split(':');
	socket.on('error', () => {});
	state.connects++;
	state.hosts.push(request.url);
	if (!isAllowed(request) || behaviour.status)
		return socket.end(`HTTP/1.1 ${behaviour.status || 407} No\r\nProxy-Authenticate: Basic realm="proxy"\r\n` +
			'Content-Length: 0\r\n\r\n');
	const onward = net.connect(port, addressOf(host), () =>
	{
		socket.write('HTTP/1.1 200 Connected\r\n\r\n');
		onward.write(head);
		onward.pipe(socket).pipe(onward);
	});
	return onward.on('error', () => socket.destroy());
});
server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
