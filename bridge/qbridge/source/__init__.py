"""Bytes, wherever they lie: storages (a folder), containers, the checkpoint read from them."""
