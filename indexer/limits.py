"""Every limit of the store, in one place. What is over one of them is refused with `LimitExceeded`.

Units are in the names. The HTTP room declares its own request limits (body bytes, queue length) in its settings.
"""

MAX_DOCUMENT_CHARS = 20_000_000  # a book is about 1 million; a 50 MB log is split by the person who wants it
MAX_DOCUMENT_ID_BYTES = 1_024
MAX_TITLE_CHARS = 1_000
MAX_METADATA_BYTES = 65_536  # of the JSON text
MAX_METADATA_DEPTH = 8
MAX_COLLECTION_NAME_CHARS = 64
MAX_QUERY_CHARS = 32_768
MAX_TOP_K = 1_000
MAX_FILTER_NODES = 256
MAX_FILE_BYTES = 200 * 1024 * 1024
LOADER_SECONDS = 30
LOADER_MEMORY_BYTES = 2 * 1024**3
