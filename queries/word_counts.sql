-- The most frequent words in the explanations of a population's features, stop words left out (Table 4, R20).
--
-- n_features counts the features with the word in one of their explanations, n the word itself. Words are letters and digits, with
-- apostrophes inside, in lower case.
--
-- $population candidates|critical|stage3|stage3_new|redundant = candidates: whose features
-- $limit integer = 30: how many words
with explained as (
    select e.sae_id, e.feature_id, translate(lower(e.description), '’“”„–—…', '''      ') as description
    from explanations as e
    semi join populations as p on p.population = $population and p.sae_id = e.sae_id and p.feature_id = e.feature_id
),

words as (
    select
        sae_id, feature_id,
        unnest(regexp_extract_all(description, '[^\s[:punct:]]+(?:''[^\s[:punct:]]+)*')) as word
    from explained
),

stop_words as (
    select unnest(string_split(
        'a about above after again against all also am an and any are as at be because been before being below between both but by '
        'can could did do does doing down during each few for from further had has have having he her here hers herself him himself '
        'his how i if in into is it its itself just me more most my myself no nor not now of off on once only or other our ours '
        'ourselves out over own s same she should so some such t than that the their theirs them themselves then there these they '
        'this those through to too under until up very was we were what when where which while who whom why will with within would '
        'you your yours yourself yourselves',
        ' '
    )) as word
)

select w.word, count(*) as n, count(distinct (w.sae_id, w.feature_id)) as n_features
from words as w
anti join stop_words as s on s.word = w.word
group by w.word
order by n desc, w.word
limit $limit
