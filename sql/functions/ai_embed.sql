CREATE TEMP MACRO ai_embed("text", options := NULL) AS ai_embed_or_error("text", options).value
