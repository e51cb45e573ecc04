CREATE TEMP MACRO ai_classify("text", labels) AS ai_classify_or_error("text", labels).value
