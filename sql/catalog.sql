-- what the extension puts into the catalog: versions, comments, privileges
SET client_min_messages = warning;
CREATE EXTENSION payment_sync;
RESET client_min_messages;

-- control file, SQL script and library are of one version
SELECT e.extversion = a.default_version AS script_is_control,
	payment_sync.version() = a.default_version AS library_is_control
FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
WHERE e.extname = 'payment_sync';

-- all that it has made bears a comment, columns of views, too
CREATE TEMPORARY VIEW members AS
	SELECT classid, objid FROM pg_depend
	WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'payment_sync');
SELECT pg_describe_object(classid, objid, 0) AS without_comment FROM members
WHERE classid NOT IN ('pg_type'::regclass) AND objid <> 'payment_sync'::regnamespace
	AND obj_description(objid, classid::regclass::name) IS NULL
ORDER BY 1;
SELECT c.oid::regclass AS view, a.attname AS without_comment
FROM members m
JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid AND c.relkind = 'v'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE col_description(c.oid, a.attnum) IS NULL
ORDER BY 1, a.attnum;

-- settings have a description
SELECT name AS without_description FROM pg_settings
WHERE name LIKE 'payment_sync.%' AND COALESCE(short_desc, '') !~ '^[A-Z].*\.$';

-- tables and sequences are for nobody, views for everybody
SELECT c.oid::regclass AS open_table
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
WHERE c.relkind IN ('r', 'S')
	AND EXISTS (SELECT FROM aclexplode(c.relacl) WHERE grantee <> c.relowner);
SELECT c.oid::regclass AS closed_view
FROM members m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
WHERE c.relkind = 'v'
	AND NOT EXISTS (SELECT FROM aclexplode(c.relacl)
					WHERE grantee = 0 AND privilege_type = 'SELECT');

-- nothing runs with its owner's rights and the caller's search_path
SELECT p.oid::regprocedure AS unsafe
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
WHERE p.prosecdef AND COALESCE(array_to_string(p.proconfig, ' '), '') !~ 'search_path';

-- what everybody may execute, and what nobody else than a superuser
SELECT p.oid::regprocedure AS function, EXISTS (
		SELECT FROM aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner)))
		WHERE grantee = 0 AND privilege_type = 'EXECUTE') AS by_everybody
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
ORDER BY by_everybody, p.oid::regprocedure::text COLLATE "C";
CREATE ROLE regress_nobody;
SET ROLE regress_nobody;
SELECT payment_sync.wake_workers();
RESET ROLE;
DROP ROLE regress_nobody;

-- calling anything with nulls is answered, never a crash or an internal error
CREATE FUNCTION pg_temp.answer(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT p.oid::regprocedure AS called_with_nulls, answer
FROM members m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid,
	LATERAL (SELECT string_agg('NULL::' || format_type(t, NULL), ', ') AS nulls
			 FROM unnest(p.proargtypes) t) a,
	LATERAL pg_temp.answer(format('%s payment_sync.%I(%s)',
		CASE p.prokind WHEN 'p' THEN 'CALL' ELSE 'SELECT' END, p.proname, a.nulls)) answer
WHERE answer !~ '^(done|22|25001|39P0[13])'
ORDER BY 1;

-- the options that validators know
SELECT wrapper, option, places, type, valid, superuser, secret
FROM payment_sync.transport_options
WHERE option IN ('library', 'host', 'sslmode', 'connect_timeout', 'password', 'password_required')
ORDER BY option, wrapper;
SELECT wrapper, option AS without_meaning FROM payment_sync.transport_options
WHERE COALESCE(meaning, '') = '';
SELECT wrapper, option AS doubtful FROM payment_sync.transport_options
WHERE type IN ('enum', 'integer', 'boolean') AND valid IS NULL
	OR secret AND 'user mapping' <> ALL (places);

DROP VIEW members;
SET client_min_messages = warning;
DROP EXTENSION payment_sync CASCADE;
