-- How often the model agrees with the packages' own classifiers, question by question.
--   accuracy    the label with the highest probability is the true one
--   majority    what always answering the most frequent true label would reach
--   calibrated  accuracy after each label's mean log-likelihood is taken off: no truth is needed for it
--   ranking     how often a package with the label gets a higher probability of it than one without
with scored as (
    select question, custom_id, truth, label, unnest(map_entries(label_logprobs)) as entry, label_probs
    from results
), candidates as (
    select question, custom_id, truth, label, entry.key as candidate,
        entry.value - avg(entry.value) over (partition by question, entry.key) as lift,
        label_probs[entry.key] as probability
    from scored
), answers as (
    select question, custom_id, truth, label, arg_max(candidate, lift) as calibrated_label
    from candidates
    where truth is not null
    group by all
), truths as (
    select question, truth, count(*) as n
    from answers
    group by all
), ranks as (
    select question, candidate, truth = candidate as is_true,
        rank() over (partition by question, candidate order by probability)
            + (count(*) over (partition by question, candidate, probability) - 1) / 2 as place
    from candidates
    where truth is not null
), rankings as (
    select question, candidate,
        (sum(place) filter (is_true) - count(*) filter (is_true) * (count(*) filter (is_true) + 1) / 2)
            / nullif(count(*) filter (is_true) * count(*) filter (not is_true), 0) as ranking
    from ranks
    group by all
)
select question,
    count(*) as packages,
    round(avg((label = truth)::int), 3) as accuracy,
    round((select max(n) / sum(n) from truths where truths.question = answers.question), 3) as majority,
    round(avg((calibrated_label = truth)::int), 3) as calibrated,
    round((select avg(ranking) from rankings where rankings.question = answers.question), 3) as ranking
from answers
group by question
order by question
