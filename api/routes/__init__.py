"""HTTP routes, one router per resource: parse, call the indexer in a worker thread, shape the answer."""
