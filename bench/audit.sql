-- The audit trigger that everybody writes: whole rows as jsonb into one table.
CREATE TABLE audit (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at timestamptz NOT NULL DEFAULT now(),
	operation text NOT NULL,
	relation regclass NOT NULL,
	old_row jsonb,
	new_row jsonb
);

CREATE OR REPLACE FUNCTION audit() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP = 'INSERT' THEN
		INSERT INTO audit (operation, relation, new_row)
			VALUES (TG_OP, TG_RELID, to_jsonb(NEW));
	ELSIF TG_OP = 'UPDATE' THEN
		INSERT INTO audit (operation, relation, old_row, new_row)
			VALUES (TG_OP, TG_RELID, to_jsonb(OLD), to_jsonb(NEW));
	ELSE
		INSERT INTO audit (operation, relation, old_row)
			VALUES (TG_OP, TG_RELID, to_jsonb(OLD));
	END IF;
	RETURN NULL;
END
$$;

CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON payments
	FOR EACH ROW EXECUTE FUNCTION audit();
