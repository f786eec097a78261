-- How many SAEs, of which widths, and the mean number of features that fire on a token.
select count(*), array_to_string(list_sort(list(distinct width)), ', '), avg(measured_l0)
from saes
