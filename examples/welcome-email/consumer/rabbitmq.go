package main

import (
	"context"
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.opentelemetry.io/otel/propagation"
)

// A queue, of which one message at a time is out. RabbitMQ knows no delay: who naks waits
// first, and the message goes back to the head of its queue.
type rabbitmqSource struct {
	conn       *amqp.Connection
	deliveries <-chan amqp.Delivery
}

func newRabbitmq(url string) (source, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	channel, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := channel.Qos(1, 0, false); err != nil {
		return nil, err
	}
	deliveries, err := channel.Consume("users.created", "welcome-email", false, false, false, false, nil)
	if err != nil {
		return nil, err
	}
	return &rabbitmqSource{conn: conn, deliveries: deliveries}, nil
}

func (s *rabbitmqSource) next(ctx context.Context) (*message, error) {
	var d amqp.Delivery
	var open bool

	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case d, open = <-s.deliveries:
	}
	if !open {
		return nil, errors.New("the broker has closed the connection")
	}
	headers := propagation.MapCarrier{}
	for name, value := range d.Headers {
		if text, ok := value.(string); ok {
			headers[name] = text
		}
	}
	return &message{
		headers: headers,
		payload: d.Body,
		ack:     func(context.Context) error { return d.Ack(false) },
		nak: func(context.Context) error {
			time.Sleep(backoff)
			return d.Nack(false, true)
		},
	}, nil
}

func (s *rabbitmqSource) close() { s.conn.Close() }
