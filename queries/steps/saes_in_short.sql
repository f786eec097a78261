-- How many SAEs, of which widths, and the mean number of features that fire on a token.
select count(*), string_agg(distinct width, ', '), avg(measured_l0)
from saes
