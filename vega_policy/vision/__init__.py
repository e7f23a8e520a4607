"""The encoder that policy and scene heads share: semantic towers, frozen prior, fusion."""
