"""Ends as llama.cpp does where an assertion fails: words on standard error, SIGABRT. Long ones before the last."""

import os
import sys

sys.stderr.write("chatter " * 1000 + "\nggml.c:42: GGML_ASSERT(n_tokens > 0) fÄiled\n")
sys.stderr.flush()
os.abort()
