-- The users service: who signs up is a row and a message, in one transaction.

CREATE TABLE users (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL,
	email text NOT NULL
);

-- What a request to the service does.  The trace that it is a part of goes with the
-- message: with the setting, or in a comment at the end of the statement.
CREATE FUNCTION sign_up(name text, email text, traceparent text) RETURNS bigint
	LANGUAGE plpgsql AS $$
DECLARE
	id bigint;
BEGIN
	PERFORM set_config('outbox.traceparent', traceparent, true);
	INSERT INTO users (name, email) VALUES (name, email) RETURNING users.id INTO id;
	PERFORM outbox.publish('users.created',
		jsonb_build_object('id', id, 'name', name, 'email', email), key => id::text);
	RETURN id;
END
$$;
