-- Options of payment_sync_http: what validators refuse, and how they say so.
CREATE EXTENSION payment_sync;
CREATE ROLE regress_payment_sync_http;
GRANT USAGE ON FOREIGN DATA WRAPPER payment_sync_http TO regress_payment_sync_http;

CREATE SERVER hook FOREIGN DATA WRAPPER payment_sync_http
	OPTIONS (url 'https://shop.example.com/hooks/{table}', format 'ndjson', max_batch '100',
		headers E'X-Shop: one\r\nX-Other: two', success_status '200-299, 409', timeout '15');
CREATE USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (
	signing_secret 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, whsec_bmV3IHNlY3JldCBuZXcgc2VjcmV0IG5ldyE=@2027-01-31T00:00:00Z',
	api_key 'key');

-- addresses
ALTER SERVER hook OPTIONS (SET url 'shop.example.com');
ALTER SERVER hook OPTIONS (SET url 'ftp://shop.example.com/');
ALTER SERVER hook OPTIONS (SET url 'https:///hooks');
ALTER SERVER hook OPTIONS (SET url 'https://{table}.example.com/');
ALTER SERVER hook OPTIONS (SET url 'https://shop.example.com/{secret}');
ALTER SERVER hook OPTIONS (SET url 'https://user:sesame@shop.example.com/');
ALTER SERVER hook OPTIONS (SET url E'https://shop.example.com/\r\nHost: other');
ALTER SERVER hook OPTIONS (SET url 'http://shop.example.com/');
ALTER SERVER hook OPTIONS (SET url 'http://localhost.example.com/');
ALTER SERVER hook OPTIONS (SET url 'http://127.0.0.1:8080/', ADD insert_url 'http://[::1]/', ADD update_url 'HTTP://LOCALHOST/');
ALTER SERVER hook OPTIONS (SET url 'http://shop.example.com/', ADD allow_http 'true');

-- headers
ALTER SERVER hook OPTIONS (SET headers 'no header');
ALTER SERVER hook OPTIONS (SET headers E'X-A: b\u007f');
ALTER SERVER hook OPTIONS (SET headers E'X-A: b\rX-B: c');
ALTER SERVER hook OPTIONS (SET headers 'Bad Name: x');
ALTER SERVER hook OPTIONS (SET headers 'Webhook-Id: mine');
ALTER SERVER hook OPTIONS (SET headers 'content-length: 0');
ALTER SERVER hook OPTIONS (ADD api_key_header 'X:Y');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (SET api_key E'secret\nX-Evil: 1');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD bearer_token E'se\rcret');

-- values
ALTER SERVER hook OPTIONS (SET success_status '2xx');
ALTER SERVER hook OPTIONS (SET success_status '299-200');
ALTER SERVER hook OPTIONS (SET success_status '200,');
ALTER SERVER hook OPTIONS (SET timeout '0');
ALTER SERVER hook OPTIONS (ADD method 'GET');
ALTER SERVER hook OPTIONS (ADD http_version '3');
ALTER SERVER hook OPTIONS (ADD compresion 'gzip');
ALTER SERVER hook OPTIONS (ADD bearer_token 'secret');

-- what belongs together, and what does not
ALTER SERVER hook OPTIONS (ADD items_index 'Id');
ALTER SERVER hook OPTIONS (ADD aws_region 'eu-central-1');
ALTER SERVER hook OPTIONS (ADD signer 'custom', ADD signer_header 'X-Signature');
ALTER SERVER hook OPTIONS (ADD items_retry '*');
ALTER SERVER hook OPTIONS (ADD content_type 'json');
ALTER SERVER hook OPTIONS (ADD content_type E'application/json\r\nX-Evil: 1');
ALTER SERVER hook OPTIONS (ADD content_type 'application/x-amz-json-1.0', SET format 'cloudevents_batch');
ALTER SERVER hook OPTIONS (ADD items_path 'Failed', ADD items_success 'Successful');
ALTER SERVER hook OPTIONS (ADD signer_hash 'sha512');
ALTER SERVER hook OPTIONS (ADD signer2_hash 'sha512');
ALTER SERVER hook OPTIONS (ADD signer3 'custom', ADD signer3_header 'X-Signature');
ALTER SERVER hook OPTIONS (ADD signer 'github', ADD signer_header 'Content-Length');
ALTER SERVER hook OPTIONS (ADD signer 'github', ADD signer_header 'X-Sig', ADD signer2 'stripe', ADD signer2_header 'x-sig');
ALTER SERVER hook OPTIONS (ADD signer5 'github');
ALTER SERVER hook OPTIONS (ADD signer 'custom', ADD signer_header 'X-Signature',
	ADD signer_content '{body}', ADD signer_value '{key}');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD bearer_token 'a', ADD user 'b', ADD password 'c');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD user 'b');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD oauth_client_id 'b');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD client_key 'b');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD aws_access_key 'b');

-- options that make no sense together
CREATE SERVER batches FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url 'https://shop.example.com/', max_batch '10');
ALTER SERVER batches OPTIONS (ADD format 'cloudevents');
ALTER SERVER batches OPTIONS (ADD delete_method 'DELETE');
ALTER SERVER batches OPTIONS (ADD update_url 'https://shop.example.com/update');
ALTER SERVER batches OPTIONS (SET url 'https://shop.example.com/{key}');
ALTER SERVER batches OPTIONS (ADD format 'debezium', ADD thin 'true');
ALTER SERVER batches OPTIONS (ADD retry_delay_min '120000');
ALTER SERVER batches OPTIONS (ADD idempotency_key 'none', ADD idempotency_header 'X-Id');
ALTER SERVER batches OPTIONS (ADD linger '5', SET max_batch '1');
ALTER SERVER batches OPTIONS (DROP linger, ADD ordering 'none', ADD on_refused 'hold');
ALTER SERVER batches OPTIONS (SET ordering 'strict', DROP on_refused, ADD max_parked '5');

-- nor with what a sync says
CREATE TABLE payments (id int PRIMARY KEY);
SELECT payment_sync.capture_table('payments');
ALTER SERVER batches OPTIONS (DROP ordering, DROP max_parked, ADD format 'debezium');
SELECT payment_sync.create_sync('s', '{payments}', server => 'batches', transform => 'event');
SELECT payment_sync.create_sync('s', '{payments}', server => 'batches', target_schema => 'elsewhere');
SELECT payment_sync.create_sync('s', '{payments}', server => 'batches', enabled => false);
SELECT payment_sync.alter_sync('s', transform => 'event');
ALTER SERVER batches OPTIONS (SET format 'json', ADD thin 'true');
SELECT payment_sync.alter_sync('s', transform => 'event');
ALTER SERVER batches OPTIONS (SET thin 'false');
SELECT payment_sync.alter_sync('s', transform => 'event');
CREATE SERVER database FOREIGN DATA WRAPPER payment_sync_postgres;
SELECT payment_sync.alter_sync('s', server => 'database');
SELECT payment_sync.alter_sync('s', server => 'database', transform => '');
ALTER SERVER batches OPTIONS (SET format 'raw');
SELECT payment_sync.alter_sync('s', server => 'batches');
SELECT payment_sync.alter_sync('s', server => 'batches', transform => 'event');
SELECT payment_sync.drop_sync('s');
SELECT payment_sync.release_table('payments');
DROP TABLE payments;
DROP SERVER batches, database;

-- secrets are checked, and never shown
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (SET signing_secret 'sesame');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (SET signing_secret 'whsec_sesame!');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (SET signing_secret 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw,');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (SET signing_secret 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw@sesame');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD signer_secret 'ses@me');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD signer4_secret 'ses@me');

-- what only a superuser may set
SET ROLE regress_payment_sync_http;
CREATE SERVER mine FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url 'https://shop.example.com/');
ALTER SERVER mine OPTIONS (ADD proxy 'http://10.0.0.1:3128');
ALTER SERVER mine OPTIONS (SET url 'http://shop.example.com/', ADD allow_http 'true');
RESET ROLE;

-- allowed hosts
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'hooks.example.com; 10.0.0.1';
SHOW payment_sync.http_allowed_hosts;
-- a mistyped entry is an error, never a name and never a wider network
\set VERBOSITY terse
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/x24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/1O';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/24x';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/+24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/ 24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/-1';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/0';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/33';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/024';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/24/8';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0//24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '/24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.O/24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '010.1.2.0/24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.256';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0.5';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.O';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.1O';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '167772161';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '0x7f.0.0.1';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '*.10.0.0.0';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.1.2.0/24 10.2.0.0/16';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '10.0.0.0/8,';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'localhost,,10.0.0.0/8';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = ',';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '::1/129';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '::/0';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'fd00::/';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'fd00::/64x';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '[::1]';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'fe80::1%eth0';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'fd00:::1/64';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '1:2:3:4:5:6:7:8:9';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'hooks..example.com';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '.example.com';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'hooks.example.com:443';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'https://hooks.example.com';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'hooks.example.com/24';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '*example.com';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '*.*.com';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'hooks.*.com';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '-a.example.com';
\set VERBOSITY default
-- and these are well-formed
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '*';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = '*.example.com, hooks.example.org';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'localhost, 10.1.2.0/24 , 192.0.2.7';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'fd00::/8,::1/128, ::ffff:10.0.0.0/104';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = 'db_1, 7up, 1.0.0.example, xn--bcher-kva.example';
ALTER SYSTEM SET payment_sync.http_allowed_hosts = ' ';
ALTER SYSTEM RESET payment_sync.http_allowed_hosts;

DROP SERVER mine CASCADE;
DROP SERVER hook CASCADE;
REVOKE USAGE ON FOREIGN DATA WRAPPER payment_sync_http FROM regress_payment_sync_http;
DROP ROLE regress_payment_sync_http;
DROP EXTENSION payment_sync;
