-- How well the factorisation machines and the linear probe tell harmful from benign prompts (R9, R12), at their best epoch.
--
-- One row a model: the epoch that is best on validation, accuracy and loss (nats) there on each split, the features that it
-- learned from, and the mean cosine of two features' embeddings: near 1, they cannot tell features apart.
--
-- $every_epoch boolean = false: a row for each epoch instead
with epochs as (
    select
        model,
        epoch,
        max(n_prompts) filter (where split = 'train') as n_train,
        max(n_prompts) filter (where split = 'test') as n_test,
        max(accuracy) filter (where split = 'train') as train_accuracy,
        max(accuracy) filter (where split = 'val') as val_accuracy,
        max(accuracy) filter (where split = 'test') as test_accuracy,
        max(loss) filter (where split = 'train') as train_loss,
        max(loss) filter (where split = 'val') as val_loss,
        max(loss) filter (where split = 'test') as test_loss
    from fm_metrics
    group by model, epoch
)

select
    e.model, m.size, e.epoch, e.epoch = m.best_epoch as best, e.n_train, e.n_test,
    e.train_accuracy, e.val_accuracy, e.test_accuracy, e.train_loss, e.val_loss, e.test_loss,
    m.n_features, m.n_untrained, m.mean_cosine
from epochs as e
join models as m on m.model = e.model
where $every_epoch or e.epoch = m.best_epoch
order by m.size, e.model, e.epoch
