-- The judge: what was published and committed, against what a consumer reads.
--
-- judge.publish() publishes and writes the ledger in the same transaction, so the
-- ledger holds exactly what must arrive.  The header "ledger" carries the row's
-- number, which is how a consumed message finds its row.  judge.consumed is filled
-- by COPY from judge_consume.  judge.verdict() compares.
--
-- What order is promised: the second of two messages of a key that was published
-- after the first's commit was visible, or later in the same transaction, comes
-- second.  Two witnesses of that:
--   seq      drawn by judge.next_seq(), which holds a row lock per (topic, key) to
--            the end of the transaction: a total order of that key
--   xid, ended_below  without seq: all transactions below the xmin of the publisher's
--            snapshot had ended

CREATE SCHEMA judge;

CREATE SEQUENCE judge.ledger_n CACHE 1;

CREATE TABLE judge.ledger (
	n bigint NOT NULL,
	topic text NOT NULL,
	key text,
	id bigint,
	seq bigint,
	partition int,
	xid xid8 NOT NULL,
	ended_below xid8 NOT NULL,
	payload_md5 text
);

CREATE TABLE judge.key_seq (
	topic text NOT NULL,
	key text NOT NULL,
	seq bigint NOT NULL,
	PRIMARY KEY (topic, key)
) WITH (fillfactor = 50);

CREATE TABLE judge.consumed (
	topic text NOT NULL,
	partition int NOT NULL,
	"offset" bigint NOT NULL,
	published_ms bigint,
	message_id text,
	ledger text,
	key bytea,
	headers jsonb,
	payload bytea,
	read_us bigint
);

-- Publishes one message and writes it down.
CREATE FUNCTION judge.publish(topic text, payload text, key text DEFAULT NULL,
	seq bigint DEFAULT NULL, headers jsonb DEFAULT '{}', partition int DEFAULT NULL)
	RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	n bigint := nextval('judge.ledger_n');
	-- before publishing: what it doesn't see has not been visible
	before xid8 := pg_snapshot_xmin(pg_current_snapshot());
	id bigint;
BEGIN
	id := outbox.publish(topic => topic, payload => payload, key => key,
		headers => headers || jsonb_build_object('ledger', n::text), partition => partition);
	INSERT INTO judge.ledger VALUES (n, topic, key, id, seq, partition,
		pg_current_xact_id(), before, md5(convert_to(payload, 'UTF8')));
	RETURN id;
END
$$;

-- The next number of a key; whoever has it is alone with the key until its end.
CREATE FUNCTION judge.next_seq(topic text, key text) RETURNS bigint LANGUAGE sql AS $$
	INSERT INTO judge.key_seq AS s VALUES (topic, key, 1)
	ON CONFLICT ON CONSTRAINT key_seq_pkey DO UPDATE SET seq = s.seq + 1 RETURNING seq
$$;

-- Publishes one message of a key in its turn.
CREATE FUNCTION judge.publish_in_order(topic text, key text, payload text DEFAULT 'x')
	RETURNS bigint LANGUAGE sql AS $$
	SELECT judge.publish(topic, payload, key, judge.next_seq(topic, key))
$$;

-- Publishes many from one statement, spread over so many keys.
CREATE FUNCTION judge.publish_many(topic text, messages bigint, keys int DEFAULT 100,
	size int DEFAULT 100) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	before xid8 := pg_snapshot_xmin(pg_current_snapshot());
	body text := repeat('x', size);
BEGIN
	INSERT INTO judge.ledger
		SELECT n, publish_many.topic, k,
			outbox.publish(topic => publish_many.topic, payload => body,
				key => k, headers => jsonb_build_object('ledger', n::text)),
			NULL, NULL, pg_current_xact_id(), before, md5(convert_to(body, 'UTF8'))
		FROM (SELECT nextval('judge.ledger_n') AS n, 'k' || i % keys AS k
			  FROM generate_series(1, messages) i) s;
	RETURN messages;
END
$$;

-- Publishes a batch.  Its messages have their headers in common, so the ledger's number
-- is the payload; judge.read_batches() gives it to what was consumed.
CREATE FUNCTION judge.publish_batch(topic text, messages int, keys int DEFAULT 10)
	RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	before xid8 := pg_snapshot_xmin(pg_current_snapshot());
	numbers bigint[];
	texts text[];
BEGIN
	SELECT array_agg(n ORDER BY n), array_agg(n::text ORDER BY n) INTO numbers, texts
		FROM (SELECT nextval('judge.ledger_n') AS n FROM generate_series(1, messages)) s;
	INSERT INTO judge.ledger
		SELECT n, publish_batch.topic, 'k' || n % keys, NULL, NULL, NULL,
			pg_current_xact_id(), before, md5(n::text)
		FROM unnest(numbers) n;
	RETURN outbox.publish_batch(topic, texts,
		(SELECT array_agg('k' || n % keys ORDER BY n) FROM unnest(numbers) n));
END
$$;

CREATE FUNCTION judge.read_batches(topic text) RETURNS void LANGUAGE sql AS $$
	UPDATE judge.consumed SET ledger = convert_from(payload, 'UTF8')
	WHERE consumed.topic = read_batches.topic AND ledger IS NULL
$$;

-- The verdict on these topics (all of the ledger's: null).
--
-- lost        in the ledger, not read; dead letters don't count as lost
-- phantom     read, but no committed transaction published it
-- reordered   first deliveries that come before one that was promised earlier
-- stale       keys whose last delivery is not their last message
-- duplicated  deliveries beyond a message's first
-- damaged     payload, key or id differ
-- scattered   keys without a chosen partition that are in several partitions
CREATE FUNCTION judge.verdict(topics text[] DEFAULT NULL, dead bigint[] DEFAULT NULL,
	OUT published bigint, OUT consumed bigint, OUT lost bigint, OUT phantom bigint,
	OUT reordered bigint, OUT stale bigint, OUT duplicated bigint, OUT damaged bigint,
	OUT scattered bigint)
	LANGUAGE plpgsql
	SET work_mem = '256MB' SET max_parallel_workers_per_gather = 0 SET jit = off AS $$
BEGIN
	CREATE TEMP TABLE delivery AS
		SELECT c.topic, c.partition, c."offset", c.key AS read_key, c.payload, c.message_id,
			l.n, l.key, l.seq, l.xid, l.ended_below, l.id, l.payload_md5, l.partition AS chosen,
			row_number() OVER (PARTITION BY l.n ORDER BY c."offset") AS copy
		FROM judge.consumed c
		LEFT JOIN judge.ledger l ON l.n = c.ledger::bigint AND l.topic = c.topic
		WHERE topics IS NULL OR c.topic = ANY (topics);
	ANALYZE pg_temp.delivery;

	SELECT count(*) INTO published FROM judge.ledger l
		WHERE topics IS NULL OR l.topic = ANY (topics);
	SELECT count(*), count(*) FILTER (WHERE d.n IS NULL),
		count(*) FILTER (WHERE d.n IS NOT NULL AND d.copy > 1),
		count(*) FILTER (WHERE d.n IS NOT NULL AND (
			d.payload IS NOT NULL AND md5(d.payload) IS DISTINCT FROM d.payload_md5
			OR d.read_key IS DISTINCT FROM convert_to(d.key, 'UTF8')
			OR d.id IS NOT NULL AND d.message_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-'
			   AND (('x' || right(replace(d.message_id, '-', ''), 16))::bit(64)
					& ((1::bigint << 58) - 1)::bit(64))::bigint <> d.id))
		INTO consumed, phantom, duplicated, damaged FROM pg_temp.delivery d;
	SELECT count(*) INTO lost FROM judge.ledger l
		WHERE (topics IS NULL OR l.topic = ANY (topics))
		  AND (dead IS NULL OR l.id IS NULL OR l.id <> ALL (dead))
		  AND NOT EXISTS (SELECT FROM pg_temp.delivery d WHERE d.n = l.n);

	-- behind it in the partition there is one that was promised to come before it
	WITH later AS (
		SELECT d.seq, d.xid, d.ended_below, d.n,
			min(d.seq) OVER after AS later_seq,
			min(d.xid::text::bigint) OVER after AS later_xid,
			min(d.n) OVER after_same AS later_n
		FROM pg_temp.delivery d
		WHERE d.n IS NOT NULL AND d.copy = 1 AND d.key IS NOT NULL
		-- from the end backwards: a frame that only grows costs one pass
		WINDOW after AS (PARTITION BY d.topic, d.partition, d.key ORDER BY d."offset" DESC
				ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
			after_same AS (PARTITION BY d.topic, d.partition, d.key, d.xid ORDER BY d."offset" DESC
				ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
	)
	SELECT count(*) INTO reordered FROM later
		WHERE later_seq < seq OR later_n < n OR later_xid < ended_below::text::bigint;

	SELECT count(*) INTO stale FROM (
		SELECT max(seq) AS newest, (array_agg(seq ORDER BY "offset" DESC))[1] AS last
		FROM pg_temp.delivery WHERE seq IS NOT NULL
		GROUP BY topic, partition, key) k
		WHERE last <> newest;

	SELECT count(*) INTO scattered FROM (
		SELECT FROM pg_temp.delivery d WHERE d.key IS NOT NULL AND d.chosen IS NULL
		GROUP BY d.topic, d.key HAVING min(d.partition) <> max(d.partition)) k;
	DROP TABLE pg_temp.delivery;
END
$$;
