-- The chosen direction ($layer null), or a layer's.
select layer, vector
from directions
where case when $layer is null then chosen else layer = $layer end
