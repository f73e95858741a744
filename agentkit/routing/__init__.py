"""Which skill does a step: texts to vectors, vectors to confidences, a query to a route."""
