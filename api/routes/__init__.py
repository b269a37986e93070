"""HTTP routes, one router per resource. Each parses, calls the indexer in a worker thread, and shapes the answer."""
