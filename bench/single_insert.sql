\set merchant random(1, 1000)
\set amount random(100, 100000)
INSERT INTO payments (merchant_id, amount, currency, status, reference, created_at, updated_at)
VALUES (:merchant, :amount / 100.0, 'EUR', 'authorized', 'order ' || :amount, now(), now());
