from sklearn.utils.estimator_checks import parametrize_with_checks
from featcache.heads.selecting import HeadToToeClassifier
from featcache.heads.views import ViewsClassifier
@parametrize_with_checks([ViewsClassifier(), ViewsClassifier('logreg'), ViewsClassifier('knn'), HeadToToeClassifier(cv=2), HeadToToeClassifier(cv=2,head="logreg",normalise=True, fractions=(1.0,0.5))])
def test_checks(estimator, check): check(estimator)
