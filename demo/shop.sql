-- One customer: pays, the payment settles, some are refunded, a few cancelled.
\set merchant random(1, 100)
\set cents random(100, 100000)
\set luck random(1, 100)
BEGIN;
INSERT INTO payments (merchant, amount, currency, status, reference, details)
	VALUES (:merchant, :cents / 100.0, 'EUR', 'authorised', md5(random()::text),
		jsonb_build_object('channel', CASE WHEN :luck % 2 = 0 THEN 'web' ELSE 'till' END))
	RETURNING id AS payment \gset
COMMIT;
BEGIN;
UPDATE payments SET status = 'settled', settled = now() WHERE id = :payment AND :luck <= 90;
INSERT INTO refunds (payment, amount, reason)
	SELECT id, amount, 'returned' FROM payments WHERE id = :payment AND :luck <= 5;
DELETE FROM payments WHERE id = :payment AND :luck > 98;
COMMIT;
