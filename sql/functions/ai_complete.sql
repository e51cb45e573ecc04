CREATE TEMP MACRO ai_complete(prompt, options := NULL) AS ai_complete_or_error(prompt, options).value
