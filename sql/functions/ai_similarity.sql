-- From -1 to 1; options are those of ai_embed, for both.
CREATE TEMP MACRO ai_similarity(one, other, options := NULL) AS
    list_cosine_similarity(ai_embed(one, options), ai_embed(other, options))
