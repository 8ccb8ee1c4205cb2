// aws.js: AWS signature version 4, verified as AWS documents it.
//
// Of what the documentation says, all is demanded that a target of ours meets:
// which headers must be signed, the canonical form of the query, the hash of
// the bytes that came, the scope, and a time that is not too far off.  A path
// other than "/" is encoded once more, as all services but S3 want it.

'use strict';

const crypto = require('node:crypto');

const sha256 = (data) => crypto.createHash('sha256').update(data).digest('hex');
const hmac = (key, data) => crypto.createHmac('sha256', key).update(data).digest();
const encode = (text) => encodeURIComponent(text)
	.replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

function canonicalQuery(query)
{
	return query.split('&').filter((p) => p !== '').map((parameter) =>
	{
		const [name, ...value] = parameter.split('=');
		return [encode(decodeURIComponent(name)), encode(decodeURIComponent(value.join('=')))];
	}).sort((a, b) => (a[0] === b[0] ? (a[1] < b[1] ? -1 : 1) : (a[0] < b[0] ? -1 : 1)))
		.map((pair) => pair.join('=')).join('&');
}

function verifyAws(config, request, body)
{
	const fields = /^AWS4-HMAC-SHA256 Credential=([^,\s]+), ?SignedHeaders=([^,\s]+), ?Signature=([0-9a-f]{64})$/
		.exec(request.headers.authorization || '');
	if (!fields)
		throw new Error(`aws: Authorization ${request.headers.authorization}`);
	const [, credential, signed, signature] = fields;
	const date = request.headers['x-amz-date'] || '';
	const scope = `${date.slice(0, 8)}/${config.region}/${config.service}/aws4_request`;
	if (credential !== `${config.key}/${scope}`)
		throw new Error(`aws: credential ${credential}`);
	const time = Date.parse(date.replace(/^(....)(..)(..T..)(..)(..Z)$/, '$1-$2-$3:$4:$5'));
	if (!(Math.abs(Date.now() - time) < 300000))
		throw new Error(`aws: time ${date}`);

	const names = signed.split(';');
	const needed = ['host', ...Object.keys(request.headers).filter((n) => n.startsWith('x-amz-')),
		...(request.headers['content-type'] ? ['content-type'] : [])];
	for (const name of needed)
		if (!names.includes(name))
			throw new Error(`aws: header ${name} is not signed`);
	if ((config.token || undefined) !== request.headers['x-amz-security-token'])
		throw new Error('aws: session token');
	if (names.join(';') !== [...names].sort().join(';'))
		throw new Error('aws: signed headers are not sorted');

	const [path, query] = request.url.split('?');
	const canonical = [request.method, path.split('/').map(encode).join('/'), canonicalQuery(query || ''),
		...names.map((n) => `${n}:${request.headers[n].trim().replace(/ +/g, ' ')}`), '',
		signed, sha256(body)].join('\n');
	let key = `AWS4${config.secret}`;
	for (const part of scope.split('/'))
		key = hmac(key, part);
	const expected = hmac(key, ['AWS4-HMAC-SHA256', date, scope, sha256(canonical)].join('\n')).toString('hex');
	if (expected !== signature)
		throw new Error(`aws: signature does not match ${canonical.replace(/\n/g, '\\n')}`);
}

module.exports = { verifyAws };
