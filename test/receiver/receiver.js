// receiver.js: a webhook receiver that judges every request.
//
//	node receiver.js CONFIG
//
// CONFIG is JSON: {secret, publicKey, signers: [{scheme, secret}, …], cert, key, ca,
// http2, keepAlive, print, oauth: {id, secret, life, inBody}, basic: "user:password",
// aws: {region, service, key, secret, token}}.  It prints "listening PORT" and then serves
//
//	GET  /_state	what came so far: counts, problems, the table made of the events
//	GET  /_requests	the last requests: method, url, raw headers, body as base64
//	POST /_set		behaviour from now on: {fail, refuse, status, headers, body, delay, revoke,
//					keys: {KEY: {status, headers, body}}, which go before these,
//					items: {style, codes: {ID: [CODE, TIMES]}}}: results per event;
//					refuse: answer 422 to what holds this text
//	POST /token		with "oauth": hands out tokens, which deliveries must bear
//	anything else	a delivery
//
// Signatures are verified by the package standardwebhooks (v1) and node:crypto
// (v1a, and the schemes of Stripe, GitHub and Adyen), CloudEvents by the
// package cloudevents.  These accept much, so the raw headers and bytes are
// looked at as well.  AWS's signatures are verified by aws.js.

'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const zlib = require('node:zlib');
const { spawnSync } = require('node:child_process');
const { verifyAws } = require('./aws.js');
const { Webhook } = require('standardwebhooks');
const { HTTP } = require('cloudevents');

const config = JSON.parse(process.argv[2] || '{}');
const webhook = config.secret ? new Webhook(config.secret) : null;

const state = {
	requests: 0,		// deliveries
	failed: 0,			// of them, those answered with a failure on purpose
	events: 0,			// different events
	duplicates: 0,		// events that had come before
	problems: [],		// whatever was not as it should be
	stale: 0,			// events that came behind a newer one of the same key
	counts: {},			// different events by table, operation and day
};
let behaviour = {};
const table = new Map();		// key -> {position, row}
const seen = new Set();			// ids of events
const bodies = new Map();		// id of message -> hash of its body
const requests = [];
let firstAt = new Map();

function problem(text)
{
	if (state.problems.length < 50)
		state.problems.push(text);
}

// ----------------------------------------------------------------- judging

function checkStandard(headers, body)
{
	webhook.verify(body.toString('utf8'), headers, { jsonParse: false });
}

// v1a is judged by Node itself: the package does not know it
function checkEd25519(headers, body)
{
	const content = Buffer.concat([
		Buffer.from(`${headers['webhook-id']}.${headers['webhook-timestamp']}.`), body]);
	const signatures = (headers['webhook-signature'] || '').split(' ')
		.filter((s) => s.startsWith('v1a,'));
	const key = crypto.createPublicKey({
		key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'),
			Buffer.from(config.publicKey, 'base64')]),
		format: 'der', type: 'spki' });
	if (!signatures.some((s) => s.length === 4 + 88 &&
		crypto.verify(null, content, key, Buffer.from(s.slice(4), 'base64'))))
		throw new Error('no v1a signature matches');
}

const hmac = (secret, content) => crypto.createHmac('sha256', secret).update(content);

const schemes = {
	stripe(headers, body, secret)
	{
		const parts = (headers['stripe-signature'] || '').split(',').map((p) => p.split('='));
		const t = parts.find((p) => p[0] === 't')[1];
		const expected = hmac(secret, Buffer.concat([Buffer.from(`${t}.`), body])).digest('hex');
		if (Math.abs(Date.now() / 1000 - Number(t)) > 300)
			throw new Error('stripe: old timestamp');
		if (!parts.some((p) => p[0] === 'v1' && p[1] === expected))
			throw new Error('stripe: no signature matches');
	},
	github(headers, body, secret)
	{
		if (headers['x-hub-signature-256'] !== `sha256=${hmac(secret, body).digest('hex')}`)
			throw new Error('github: signature does not match');
	},
	adyen(headers, body, secret)
	{
		if (headers.hmacsignature !== hmac(Buffer.from(secret, 'hex'), body).digest('base64'))
			throw new Error('adyen: signature does not match');
	},
	// a scheme of one's own, with all that a template can do
	custom(headers, body, secret)
	{
		const id = headers['webhook-id'];
		const [, t] = /^([0-9]+);/.exec(headers['x-signature'] || '') || [];
		const expected = crypto.createHmac('sha512', Buffer.from(secret, 'base64'))
			.update(Buffer.concat([Buffer.from(`${id}:${t}:`), body])).digest('base64');
		if (headers['x-signature'] !== `${t};${id};${expected}`)
			throw new Error('custom: signature does not match');
	},
};

function checkHeaders(request, body)
{
	const headers = request.headers;
	const type = headers['content-type'];

	if (request.method !== 'DELETE' && !/^[a-z]+\/[a-z0-9.+-]+$/.test(type || ''))
		throw new Error(`media type ${type}`);
	if (!/^[A-Za-z0-9_-]+$/.test(headers['webhook-id'] || ''))
		throw new Error(`webhook-id ${headers['webhook-id']}`);
	if (headers['idempotency-key'] !== `"${headers['webhook-id']}"`)
		throw new Error(`Idempotency-Key ${headers['idempotency-key']}`);
	if (headers.expect || headers['transfer-encoding'])
		throw new Error('Expect or chunked');
	if (/[^\x20-\x7e]/.test(JSON.stringify(request.rawHeaders)))
		throw new Error('a header is not ASCII');

	// frozen: what bears the same id is the same
	const hash = crypto.createHash('sha256').update(body).digest('hex');
	const before = bodies.get(headers['webhook-id']);
	if (before !== undefined && before !== hash)
		throw new Error(`another body with the id ${headers['webhook-id']}`);
	bodies.set(headers['webhook-id'], hash);
}

// The events of a body, as {id, type, key, position, new, …}, in order.
function readEvents(request, body)
{
	const type = request.headers['content-type'] || '';
	const ours = (event) => ({ ...event.data, id: event.id, type: event.type,
		operation: event.type.split('.').pop(), position: event.sequence,
		previous: event.previoussequence });

	if (type.startsWith('application/cloudevents') || request.headers['ce-id'])
	{
		const events = [].concat(HTTP.toEvent({ headers: request.headers, body: body.toString() }));
		for (const event of events)
		{
			event.validate();
			if (request.headers['ce-id'] === undefined)
				continue;
			if (request.headers['ce-specversion'] !== '1.0' || request.headers['ce-datacontenttype'])
				throw new Error('ce- headers');
			// the package leaves them encoded
			if (decodeURIComponent(request.headers['ce-id']) !== event.id)
				throw new Error('ce-id');
		}
		return events.map(ours);
	}
	if (type === 'application/x-ndjson')
	{
		const text = body.toString();
		if (!text.endsWith('\n') || text.includes('\r'))
			throw new Error('lines of NDJSON');
		return text.slice(0, -1).split('\n').map((line) => JSON.parse(line));
	}
	const value = JSON.parse(body.toString());
	return Array.isArray(value) ? value : [value];
}

// --------------------------------------------------------------- the table

const keyText = (event) => `${event.schema}.${event.table} ${JSON.stringify(event.key)}`;

function apply(event)
{
	if (seen.has(event.id))
	{
		state.duplicates++;
		return;
	}
	seen.add(event.id);
	state.events++;
	if (event.at !== undefined)
	{
		const kind = `${event.table} ${event.operation} ${event.at.slice(0, 10)}`;
		state.counts[kind] = (state.counts[kind] || 0) + 1;
	}
	if (event.operation === 'truncate')
	{
		table.clear();
		return;
	}
	if (event.operation === undefined || event.key === undefined)
		return;				// thin, or a format without our members
	const key = keyText(event);
	const at = table.get(key);
	if (at !== undefined && at.position >= event.position)
	{
		state.stale++;
		if (event.operation !== 'read')
			problem(`${event.id}: position ${event.position} of ${key} behind ${at.position}`);
		return;
	}
	if (at !== undefined && event.previous !== undefined && event.previous !== at.position)
		problem(`${event.id}: previous ${event.previous} of ${key} is not ${at.position}`);
	table.set(key, { position: event.position, row: event.operation === 'delete' ? null : event.new });
}

// ------------------------------------------------------------------ server

function judge(request, body)
{
	checkHeaders(request, body);
	if (webhook)
		checkStandard(request.headers, body);
	if (config.publicKey)
		checkEd25519(request.headers, body);
	for (const signer of config.signers || [])
		schemes[signer.scheme](request.headers, body, signer.secret);
	return request.method === 'DELETE' ? [] : readEvents(request, body);
}

// zstd by its own program: Node has it from version 22 on only
function unzstd(body)
{
	const run = spawnSync('zstd', ['-d', '-c', '--quiet'], { input: body, maxBuffer: 1 << 28 });
	if (run.status !== 0)
		throw new Error(`zstd: ${run.error || run.stderr}`);
	return run.stdout;
}

function identity(request, body)
{
	switch (request.headers['content-encoding'])
	{
		case undefined: return body;
		case 'gzip': return zlib.gunzipSync(body);
		case 'zstd': return unzstd(body);
		default: throw new Error(`Content-Encoding ${request.headers['content-encoding']}`);
	}
}

// Results per event, as EventBridge ("entries") or SQS ("failed") give them.
// Events whose key's id is listed fail with the code, so many times.
let itemFailures = new Map();

function applyItems(events)
{
	const results = events.map((event, i) =>
	{
		const id = String(Object.values(event.key)[0]);
		const [code, times] = behaviour.items.codes[id] || [];
		const before = itemFailures.get(event.id) || 0;
		if (code !== undefined && before < times)
		{
			itemFailures.set(event.id, before + 1);
			return { Id: String(i), code, event: event.id };
		}
		apply(event);
		return { Id: String(i), event: event.id };
	});
	if (behaviour.items.style === 'failed')
		return JSON.stringify({ Successful: results.filter((r) => !r.code).map((r) => ({ Id: r.Id })),
			Failed: results.filter((r) => r.code).map((r) => ({ Id: r.Id, Code: r.code, SenderFault: false })) });
	return JSON.stringify({ FailedEntryCount: results.filter((r) => r.code).length,
		Entries: results.map((r) => r.code ? { ErrorCode: r.code, ErrorMessage: 'no' } : { EventId: r.event }) });
}

// What decides about a message is the key of its first event.
const firstKey = (events) => events.map((event) => Object.values(event.key || {}).join(','))[0];

function receive(request, raw)
{
	state.requests++;
	requests.push({ method: request.method, url: request.url, version: request.httpVersion,
		rawHeaders: request.rawHeaders, headers: request.headers,
		body: raw.toString('base64'), at: Date.now() * 1000 });
	if (requests.length > 2000)
		requests.shift();
	const fails = Math.random() < (behaviour.fail || 0);
	// half of the failures come after the work is done: those are sent again
	const works = !fails || Math.random() < 0.5;
	let events = [];
	try
	{
		if (config.aws)
			verifyAws(config.aws, request, raw);
		events = judge(request, identity(request, raw));
	}
	catch (error)
	{
		problem(`${request.method} ${request.url}: ${error.message}`);
		return { status: 400, body: error.message };
	}
	if (behaviour.refuse && identity(request, raw).includes(behaviour.refuse))
		return { ...behaviour, status: 422 };
	const says = { ...behaviour, ...((behaviour.keys || {})[firstKey(events)] || {}) };
	if (behaviour.items)
		says.body = applyItems(events);
	else if (works && (says.status || 200) < 300)
		events.forEach(apply);
	if (config.print)
		for (const event of events)
			console.log(`${event.type} ${JSON.stringify(event.key)} ${JSON.stringify(event.new)}`);
	if (fails)
	{
		state.failed++;
		return { ...says, status: 500 };
	}
	return says;
}

// ------------------------------------------------------------------- OAuth

let token = null;

function giveToken(request, body)
{
	const form = new URLSearchParams(body.toString());
	const pair = config.oauth.inBody
		? `${encodeURIComponent(form.get('client_id'))}:${encodeURIComponent(form.get('client_secret'))}`
		: Buffer.from((request.headers.authorization || '').replace('Basic ', ''), 'base64').toString();

	state.tokens = (state.tokens || 0) + 1;
	if (form.get('grant_type') !== 'client_credentials' ||
		request.headers['content-type'] !== 'application/x-www-form-urlencoded' ||
		pair !== `${encodeURIComponent(config.oauth.id)}:${encodeURIComponent(config.oauth.secret)}`)
		return [401, '{"error":"invalid_client"}'];
	if (config.oauth.inBody && request.headers.authorization !== undefined)
		return [400, '{"error":"invalid_request"}'];
	token = `token-${state.tokens}-of-the-test`;
	state.tokenForm = { scope: form.get('scope'), audience: form.get('audience') };
	return [200, JSON.stringify({ token_type: 'Bearer', access_token: token, scope: form.get('scope'),
		expires_in: config.oauth.life || 3600 })];
}

function answer(response, status, body, headers)
{
	response.writeHead(status, headers || {});
	response.end(body);
}

function control(request, response, body)
{
	if (request.url === '/_set')
	{
		behaviour = JSON.parse(body.toString());
		if (behaviour.revoke)
			token = null;
		return answer(response, 200, 'ok');
	}
	if (request.url === '/_requests')
		return answer(response, 200, JSON.stringify(requests));
	const rows = {};
	for (const [key, value] of table)
		if (value.row !== null)
			rows[key] = value.row;
	return answer(response, 200, JSON.stringify({ ...state, table: rows }));
}

function onRequest(request, response)
{
	const chunks = [];

	request.on('data', (chunk) => chunks.push(chunk));
	request.on('error', () => {});
	request.on('end', () =>
	{
		const body = Buffer.concat(chunks);
		if (request.url.startsWith('/_'))
			return control(request, response, body);
		if (config.oauth && request.url === '/token')
			return answer(response, ...giveToken(request, body));
		if (config.oauth && (token === null || request.headers.authorization !== `Bearer ${token}`))
		{
			state.unauthorized = (state.unauthorized || 0) + 1;
			return answer(response, 401, `no: ${request.headers.authorization}`);
		}
		const expected = config.basic ? `Basic ${Buffer.from(config.basic).toString('base64')}`
			: config.bearer && `Bearer ${config.bearer}`;
		if (expected && request.headers.authorization !== expected)
		{
			state.unauthorized = (state.unauthorized || 0) + 1;
			return answer(response, 401, `no: ${request.headers.authorization}`);
		}
		const says = receive(request, body);
		const finish = () => answer(response, says.status || 200, says.body || '', says.headers);
		return says.delay ? setTimeout(finish, says.delay) : finish();
	});
}

const options = config.cert ? {
	cert: fs.readFileSync(config.cert), key: fs.readFileSync(config.key),
	ca: config.ca ? fs.readFileSync(config.ca) : undefined,
	requestCert: !!config.ca, rejectUnauthorized: !!config.ca, allowHTTP1: true } : {};
const server = config.cert
	? (config.http2 ? require('node:http2').createSecureServer(options, onRequest)
		: require('node:https').createServer(options, onRequest))
	: (config.http2 ? require('node:http2').createServer(options, onRequest)
		: require('node:http').createServer(onRequest));
server.keepAliveTimeout = config.keepAlive || 60000;
server.listen(config.port || 0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
